"""The interface in a real browser: templates, a first run, a help page, and no error of ours in the console.

What it needs, `browser.py` says.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from .browser import BROWSER, TOOLS, missing_for_browser
from .hosts import Host
from .server import PACK, PACK_NAME, Server
from .test_workflows import ALL, NOTES
from .ui_graph import to_prompt

DRIVER = Path(__file__).with_name("browser.mjs")

# Where a translated page may be: the interface looks there first, and an answer of 404 is in its console.
TRANSLATION = re.compile(r"/docs/ContextDiffusion\w+/\w+\.md$")


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(missing_for_browser() is not None, reason=str(missing_for_browser())),
]


def _frontend(host: Host) -> tuple[str, ...]:
    """The flag for the interface that this ComfyUI was released with, if it is there."""
    wanted = re.search(r"comfyui-frontend-package==([\d.]+)", (host.path / "requirements.txt").read_text())
    if wanted:
        static = TOOLS / f"frontend-{wanted[1]}" / "comfyui_frontend_package" / "static"
        if static.is_dir():
            return ("--front-end-root", str(static))
    return ()


@pytest.fixture(scope="module")
def server(comfyui: Host, start_server: Callable[..., Server]) -> Server:
    # One that no other test has saved images on.
    return start_server(comfyui, _frontend(comfyui), user="browser")


@pytest.fixture(scope="module")
def visit(server: Server, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """Everything that one visit found."""
    screenshots = tmp_path_factory.mktemp("screenshots")
    command = ["node", str(DRIVER), str(TOOLS), BROWSER, server.url, PACK_NAME, str(screenshots)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert "error" not in found, f"{found['error']}\n(screenshots in {screenshots})\n{found['console']}"
    return found


def test_the_template_browser_lists_the_pack_with_pictures(visit: dict) -> None:
    assert sorted(visit["templates"]) == [path.stem for path in ALL]
    assert all(width >= 256 for width, _ in visit["templates"].values())


def test_the_first_template_runs_to_an_image_in_the_graph(visit: dict, server: Server) -> None:
    assert visit["first"] == ALL[0].stem and not visit["missing"]
    assert visit["shown"] == [128, 128]
    assert len(list((server.base / "output").glob("*.png"))) == 1


def test_a_help_page_opens_with_its_pictures(visit: dict) -> None:
    assert visit["help"] and all(width > 0 for _, width in visit["help"])


def test_no_console_error_is_ours(visit: dict) -> None:
    ours = re.compile(r"context.?diffusion", re.IGNORECASE)
    errors = [
        error
        for error in visit["console"]
        if ours.search(error["text"] + error["url"]) and not TRANSLATION.search(error["url"])
    ]
    assert not errors
    assert not [url for url in visit["failed"] if ours.search(url) and not TRANSLATION.search(url)]


def test_graphs_mean_to_the_tests_what_they_mean_to_the_interface(visit: dict, server: Server) -> None:
    info = server.get("/object_info")
    for path in ALL:
        graph = json.loads(path.read_text(encoding="utf-8"))
        theirs = {
            node_id: {key: node[key] for key in ("class_type", "inputs")}
            for node_id, node in visit["prompts"][path.stem].items()
            if node["class_type"] not in NOTES
        }
        # Through JSON, as what is compared with came: a connection is a plain list there.
        assert json.loads(json.dumps(to_prompt(graph, info).nodes)) == theirs, path.stem


def test_the_pack_has_no_script_of_its_own() -> None:
    """Nothing of ours runs in the browser, so that nothing of ours can break there."""
    assert not list((PACK / "web").rglob("*.js"))
