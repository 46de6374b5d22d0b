"""Packages that the data is made of: fetched, checked, read."""

import base64
import hashlib
import json
import os
import stat
import sys

import pytest

from context_diffusion.data.sources.emoji_styles import (
    _by_file_name,
    _iconify,
)
from context_diffusion.data.sources.packages import Package, fetch_package, read_archive
from context_diffusion.errors import ContextDiffusionError

from .archives import archive_bytes

CONTENT = archive_bytes({"svg/1F600.svg": b"<svg/>", "readme.md": b"hello"})


PACKAGE = Package("@scope/icons", "1.2.3", base64.b64encode(hashlib.sha512(CONTENT).digest()).decode(), "MIT", "us")


@pytest.fixture
def npm(tmp_path, monkeypatch):
    """Put a program called npm first on the path; gives a function that says what it does."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder), prepend=None)

    def behave(code):
        script = folder / "npm"
        calls = f"open({str(tmp_path / 'calls')!r}, 'a').write(' '.join(sys.argv[1:]) + '\\n')"
        script.write_text(f"#!{sys.executable}\nimport sys\n{calls}\n{code}\n")
        script.chmod(script.stat().st_mode | stat.S_IXUSR)

    behave.calls = lambda: (tmp_path / "calls").read_text().splitlines()
    return behave


def write_archive(content):
    return f"open('scope-icons-1.2.3.tgz', 'wb').write({content!r})"


@pytest.mark.skipif(os.name == "nt", reason="a script on the path")
class TestFetching:
    def test_the_pinned_package(self, npm, tmp_path):
        npm(write_archive(CONTENT))
        archive = fetch_package(PACKAGE, tmp_path / "packages")
        assert archive.read_bytes() == CONTENT and archive.name == "scope-icons-1.2.3.tgz"
        assert npm.calls()[0].split()[0] == "pack" and npm.calls()[0].endswith("@scope/icons@1.2.3")
        fetch_package(PACKAGE, tmp_path / "packages")
        assert len(npm.calls()) == 1, "what is there is not fetched again"

    def test_a_damaged_copy_is_fetched_anew(self, npm, tmp_path):
        npm(write_archive(CONTENT))
        (tmp_path / PACKAGE.archive_name).write_bytes(CONTENT[:-1])
        assert fetch_package(PACKAGE, tmp_path).read_bytes() == CONTENT

    def test_another_archive_is_refused(self, npm, tmp_path):
        npm(write_archive(archive_bytes({"svg/1F600.svg": b"<svg>not the pinned one</svg>"})))
        folder = tmp_path / "packages"
        with pytest.raises(ContextDiffusionError, match="scope-icons-1.2.3.tgz has SHA-512"):
            fetch_package(PACKAGE, folder)
        assert list(folder.iterdir()) == []

    def test_npm_fails(self, npm, tmp_path):
        npm("print('noise\\nno such package', file=sys.stderr); sys.exit(1)")
        with pytest.raises(ContextDiffusionError, match="@scope/icons@1.2.3: no such package"):
            fetch_package(PACKAGE, tmp_path)

    def test_npm_is_missing(self, npm, tmp_path):
        with pytest.raises(ContextDiffusionError, match="Node.js"):
            fetch_package(PACKAGE, tmp_path)
        (tmp_path / PACKAGE.archive_name).write_bytes(CONTENT)
        assert fetch_package(PACKAGE, tmp_path).read_bytes() == CONTENT, "put there by hand"


def test_reading_an_archive(tmp_path):
    (tmp_path / "a.tgz").write_bytes(CONTENT)
    assert read_archive(tmp_path / "a.tgz", "svg/", ".svg") == {"svg/1F600.svg": b"<svg/>"}
    assert set(read_archive(tmp_path / "a.tgz")) == {"svg/1F600.svg", "readme.md"}
    assert _by_file_name("svg/", ".svg")(tmp_path / "a.tgz", {}) == {"1f600": b"<svg/>"}


def test_icon_sets_by_codepoint_and_by_name(tmp_path):
    icons = {
        "width": 32,
        "height": 32,
        "icons": {"fox": {"body": "<a/>"}, "camping": {"body": "<b/>", "width": 64}},
        "aliases": {"renard": {"parent": "fox"}, "fuchs": {"parent": "renard"}},
    }
    files = {"icons.json": json.dumps(icons).encode()}
    (tmp_path / "names.tgz").write_bytes(archive_bytes(files))
    by_name = _iconify(tmp_path / "names.tgz", {"fuchs": "1f98a", "camping": "1f3d5", "absent": "1f600"})
    assert set(by_name) == {"1f98a", "1f3d5"}
    assert b"<a/>" in by_name["1f98a"] and b'viewBox="0 0 32 32"' in by_name["1f98a"]
    assert b'viewBox="0 0 64 32"' in by_name["1f3d5"]
    files["chars.json"] = json.dumps({"1f98a-fe0f": "renard"}).encode()
    (tmp_path / "chars.tgz").write_bytes(archive_bytes(files))
    assert set(_iconify(tmp_path / "chars.tgz", {"camping": "1f3d5"})) == {"1f98a"}
