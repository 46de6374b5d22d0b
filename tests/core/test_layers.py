"""The layers of the house: the contracts in pyproject.toml, checked by import-linter."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from importlinter.cli import EXIT_STATUS_SUCCESS, lint_imports

ROOT = Path(__file__).parents[2]
_LINT = "from importlinter.cli import lint_imports; raise SystemExit(lint_imports(no_cache=True))"


def test_imports_keep_to_the_contracts(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    status = lint_imports(config_filename="pyproject.toml", is_debug_mode=False, no_cache=True)
    assert status == EXIT_STATUS_SUCCESS, capsys.readouterr().out


@pytest.mark.parametrize(
    ("room", "line", "contract"),
    [
        # Each is one line of a new file `intruder.py` in the room.
        ("model", "from ..checkpoint import stored", "Imports go down only"),
        ("sampling", "import comfy", "The core knows nothing of ComfyUI"),
        ("maps", "from . import depth", "No circles"),
    ],
)
def test_a_broken_contract_is_seen(tmp_path, room, line, contract):
    """Without it a contract that names nothing would pass for one that is kept."""
    for name in ("context_diffusion", "nodes", "research"):
        shutil.copytree(
            ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("*.safetensors", "*.png", "__pycache__")
        )
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "context_diffusion" / room / "intruder.py").write_text(line + "\n")
    if contract == "No circles":
        with (tmp_path / "context_diffusion" / room / "depth.py").open("a") as neighbour:
            neighbour.write("\nfrom . import intruder\n")
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "from importlinter.cli import lint_imports; raise SystemExit(lint_imports(no_cache=True))",
        ],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert f"{contract} BROKEN" in " ".join(done.stdout.split())
