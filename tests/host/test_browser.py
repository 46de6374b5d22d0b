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
from .test_bypass import SAVED, bypass, links_by_name, links_of, our_nodes, read, without
from .test_workflows import ALL, NOTES
from .ui_graph import to_prompt

DRIVER = Path(__file__).with_name("browser.mjs")
# As many as the help page says: with more, the interface loses links when it pastes.
CONTEXT_IMAGES = 7

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
    command = [
        "node", str(DRIVER), str(TOOLS), BROWSER, server.url, PACK_NAME, str(screenshots), str(SAVED[0].parent),
        str(CONTEXT_IMAGES),
    ]  # fmt: skip
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


def sent(prompt: dict[str, dict]) -> dict[str, dict]:
    """A prompt of the interface without notes and titles."""
    return {
        node_id: {key: node[key] for key in ("class_type", "inputs")}
        for node_id, node in prompt.items()
        if node["class_type"] not in NOTES
    }


def prompts_by_graph(visit: dict) -> list[tuple[Path, dict[str, dict]]]:
    """Every graph that was opened, and bypassed node ('': none) -> what the interface would send."""
    return [(path, visit["prompts"][path.stem]) for path in ALL] + [(path, visit["saved"][path.stem]) for path in SAVED]


def test_graphs_mean_to_the_tests_what_they_mean_to_the_interface(visit: dict, server: Server) -> None:
    info = server.get("/object_info")
    for path, prompts in prompts_by_graph(visit):
        graph = read(path)
        for node_id, prompt in prompts.items():
            graph_sent = bypass(graph, int(node_id)) if node_id else graph
            # Through JSON, as what is compared with came: a connection is a plain list there.
            assert json.loads(json.dumps(to_prompt(graph_sent, info).nodes)) == sent(prompt), (path.stem, node_id)


def test_a_bypassed_node_is_as_if_it_were_not_there(visit: dict, server: Server) -> None:
    info = server.get("/object_info")
    for path, prompts in prompts_by_graph(visit):
        whole = sent(prompts[""])
        for node_id in map(str, our_nodes(read(path))):
            expected = without(whole, node_id, info)
            assert sent(prompts[node_id]) == expected, (path.stem, whole[node_id]["class_type"])


def test_graphs_saved_before_mean_what_they_meant(visit: dict, server: Server) -> None:
    info = server.get("/object_info")
    for path in SAVED:
        assert links_of(sent(visit["saved"][path.stem][""]), info) == links_by_name(read(path))


def test_context_images_stay_where_a_node_is_pasted_or_unpacked(visit: dict) -> None:
    expected = {f"images.image{index}": 64 + index for index in range(CONTEXT_IMAGES)}
    for step, images in visit["copies"].items():
        assert images == expected, step


def test_the_pack_has_no_script_of_its_own() -> None:
    """Nothing of ours runs in the browser, so that nothing of ours can break there."""
    assert not list((PACK / "web").rglob("*.js"))
