"""Where ComfyUI is on this machine.

COMFYUI_PATH names one checkout or several (separated as in PATH); without it `~/comfy/ComfyUI` and `~/comfy/ComfyUI-*`
are looked at. Each runs with COMFYUI_PYTHON, else with the `.venv` or `venv` inside it, else with this interpreter.
"""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Host:
    """A ComfyUI checkout.

    Attributes:
        path: its folder.
        version: as `comfyui_version.py` has it.
        python: the interpreter that has its requirements.
    """

    path: Path
    version: str
    python: Path


def find_hosts() -> tuple[list[Host], list[str]]:
    """The checkouts to test against, newest first, and why others cannot be."""
    named = os.environ.get("COMFYUI_PATH")
    if named:
        folders = [Path(part).expanduser() for part in named.split(os.pathsep) if part]
    else:
        home = Path.home() / "comfy"
        folders = [folder for folder in (home / "ComfyUI", *sorted(home.glob("ComfyUI-*"))) if folder.is_dir()]
    hosts, missing = [], []
    for folder in folders:
        version, python = _version(folder), _python(folder)
        if version is None:
            missing.append(f"{folder} is no ComfyUI checkout")
        elif python is None:
            missing.append(
                f"{folder} has no interpreter with its requirements: set COMFYUI_PYTHON, or make {folder}/.venv"
            )
        else:
            hosts.append(Host(folder, version, python))
    if not folders:
        missing.append("no ComfyUI found: set COMFYUI_PATH to a checkout, or put one at ~/comfy/ComfyUI")
    return sorted(hosts, key=lambda host: [int(part) for part in host.version.split(".")], reverse=True), missing


def _version(folder: Path) -> str | None:
    try:
        version = re.search(r'__version__ = "([\d.]+)"', (folder / "comfyui_version.py").read_text())
    except OSError:
        return None
    return version[1] if version and (folder / "main.py").exists() else None


def _python(folder: Path) -> Path | None:
    if os.environ.get("COMFYUI_PYTHON"):
        return Path(os.environ["COMFYUI_PYTHON"]).expanduser()
    for name in (".venv", "venv"):
        python = folder / name / "bin" / "python"
        if python.exists():
            return python
    needed = ("aiohttp", "einops", "sqlalchemy", "torchsde", "torchvision", "comfyui_frontend_package")
    return Path(sys.executable) if all(importlib.util.find_spec(name) for name in needed) else None
