"""Which ComfyUI the nodes need, and one clear line for an older one."""

from __future__ import annotations

import re

# The first with everything that the schemas use: autogrow inputs, advanced widgets and search words among it.
# pyproject.toml says the same to the node registry.
FLOOR = (0, 12, 0)


def too_old() -> str | None:
    """Why this ComfyUI cannot run the nodes; None when it can, or where there is no ComfyUI at all."""
    try:
        from comfyui_version import __version__ as version
    except ImportError:
        return None
    if tuple(map(int, re.findall(r"\d+", version)[:3])) >= FLOOR:
        return None
    wanted = ".".join(map(str, FLOOR))
    return f"Context Diffusion needs ComfyUI {wanted} or newer and this is {version}: update ComfyUI to have its nodes"
