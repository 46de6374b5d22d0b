"""The layers of the house: the contracts in pyproject.toml, checked by import-linter."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
_LINT = "from importlinter.cli import lint_imports; raise SystemExit(lint_imports(no_cache=True))"


def lint(folder):
    """import-linter over a tree, in a process of its own: it sets logging up anew, for everybody in it."""
    environment = os.environ | {"PYTHONPATH": str(folder)}
    return subprocess.run([sys.executable, "-c", _LINT], cwd=folder, env=environment, capture_output=True, text=True)


def test_imports_keep_to_the_contracts():
    done = lint(ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


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
    done = lint(tmp_path)
    assert done.returncode == 1
    assert f"{contract} BROKEN" in " ".join(done.stdout.split())
