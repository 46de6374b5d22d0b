"""The npm packages that `packages.json` pins: fetched with `npm pack`, checked by SHA-512, read as archives."""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import shutil
import subprocess
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

from ...errors import ContextDiffusionError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Package:
    """One npm package at one version.

    Attributes:
        name: npm name, with its scope.
        version: exact version.
        sha512: the archive's SHA-512 in base64, as npm publishes it (`dist.integrity`).
        licence: SPDX identifier of what we take from it.
        attribution: who made it and where it lives.
    """

    name: str
    version: str
    sha512: str
    licence: str
    attribution: str

    @property
    def archive_name(self) -> str:
        """The file that `npm pack` writes."""
        return f"{self.name.lstrip('@').replace('/', '-')}-{self.version}.tgz"


# Every package, by its name.
PACKAGES = {
    name: Package(name, **entry)
    for name, entry in json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8")).items()
}


def fetch_package(package: Package, folder: Path) -> Path:
    """Bring a package's archive into `folder`, unless a good copy is there.

    Args:
        package: what to fetch.
        folder: where the archive goes; it also serves archives that were put there by hand.

    Returns:
        The archive's path.

    Raises:
        ContextDiffusionError: npm is missing or fails, or the archive is not the pinned one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    archive = folder / package.archive_name
    if archive.exists() and _sha512(archive) == package.sha512:
        return archive
    npm = shutil.which("npm")
    if npm is None:
        raise ContextDiffusionError(
            f"npm was not found: install Node.js, or put {package.archive_name} into {folder} by hand"
        )
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        command = [npm, "pack", "--loglevel=error", f"{package.name}@{package.version}"]
        result = subprocess.run(command, cwd=scratch, capture_output=True, text=True, check=False)
        fetched = Path(scratch) / package.archive_name
        if result.returncode != 0 or not fetched.exists():
            said = [line for line in result.stderr.splitlines() if line.strip() and "complete log" not in line]
            reason = (said or ["no reason given"])[-1]
            raise ContextDiffusionError(f"npm could not fetch {package.name}@{package.version}: {reason}")
        digest = _sha512(fetched)
        if digest != package.sha512:
            raise ContextDiffusionError(
                f"{package.archive_name} has SHA-512 {digest[:16]}..., expected {package.sha512[:16]}...: "
                "the archive was changed or damaged on its way; fetch it again"
            )
        fetched.replace(archive)
    logger.info("fetched %s", package.archive_name)
    return archive


def read_archive(archive: Path, prefix: str = "", suffix: str = "") -> dict[str, bytes]:
    """Files of an archive whose path starts with package/`prefix` and ends with `suffix`, path -> content."""
    root = "package/"
    with tarfile.open(archive, "r:gz") as tar:
        return {
            member.name[len(root) :]: tar.extractfile(member).read()
            for member in tar
            if member.isfile() and member.name.startswith(root + prefix) and member.name.endswith(suffix)
        }


def _sha512(path: Path) -> str:
    digest = hashlib.sha512()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return base64.b64encode(digest.digest()).decode()
