"""Where a browser for the tests is.

Needed are Node.js, Chromium, and playwright-core in a folder of its own, outside the repository:

    mkdir ~/browser && cd ~/browser && npm init -y && npm install playwright-core

BROWSER_TOOLS names that folder (default `~/browser`), BROWSER the browser's executable. A folder `frontend-VERSION` in
it, made by `pip install --no-deps --target frontend-VERSION comfyui-frontend-package==VERSION`, is used with the
ComfyUI that asks for that version of its interface; otherwise all run with the one that is installed.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

_NAMES = ("chromium", "chromium-browser", "google-chrome")

TOOLS = Path(os.environ.get("BROWSER_TOOLS", "~/browser")).expanduser()
BROWSER = os.environ.get("BROWSER") or next(filter(None, map(shutil.which, _NAMES)), None)


def missing_for_browser() -> str | None:
    """What is not there, in a line, or None."""
    if not shutil.which("node"):
        return "no Node.js"
    if not BROWSER:
        return "no Chromium: install it, or set BROWSER"
    if not (TOOLS / "node_modules" / "playwright-core").is_dir():
        return f"no playwright-core in {TOOLS}: tests/host/browser.py says how to get it, BROWSER_TOOLS where it is"
    return None
