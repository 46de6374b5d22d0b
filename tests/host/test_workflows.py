"""The example workflows: tidy, complete, and each runs to the same saved image every time."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest
from PIL import Image

from .hosts import Host
from .make_thumbnails import NEEDS_OWN_WEIGHTS, WORKFLOWS, images_of
from .prompt import Prompt
from .server import PACK, Server
from .ui_graph import to_prompt

ALL = sorted(WORKFLOWS.glob("*.json"))
RUNNING = [path for path in ALL if NEEDS_OWN_WEIGHTS not in path.stem]
NOTES = {"Note", "MarkdownNote"}
# Height of a node's title bar, which lies above its position.
TITLE = 30
# Files that a workflow asks for beyond the bundled ones, and the folders they belong to.
OWN_WEIGHTS = {
    "diffusion_models": ["flux1-dev.safetensors"],
    "text_encoders": ["clip_l.safetensors", "t5xxl_fp16.safetensors"],
    "vae": ["ae.safetensors"],
    "clip_vision": ["sigclip_vision_patch14_384.safetensors"],
    "style_models": ["flux1-redux-dev.safetensors"],
}


def _read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def _box(node: dict) -> tuple[float, float, float, float]:
    """Left, top, right, bottom, with the title bar."""
    (left, top), (width, height) = node["pos"], node["size"]
    return left, top - TITLE, left + width, top + height


def test_there_are_workflows_for_everything() -> None:
    assert len(ALL) >= 13
    assert len(RUNNING) == len(ALL) - 1


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.stem)
class TestTidy:
    """What can be said of a graph without running it."""

    def test_no_two_nodes_overlap(self, path: Path) -> None:
        nodes = _read(path)["nodes"]
        for index, one in enumerate(nodes):
            for other in nodes[:index]:
                a, b = _box(one), _box(other)
                apart = a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]
                assert apart, f"{one['type']} {one['id']} lies on {other['type']} {other['id']}"

    def test_every_node_is_in_a_numbered_group(self, path: Path) -> None:
        graph = _read(path)
        groups = sorted(graph["groups"], key=lambda group: group["bounding"][0])
        assert [group["title"].split(".")[0] for group in groups] == [str(i + 1) for i in range(len(groups))]
        for node in graph["nodes"]:
            left, top, right, bottom = _box(node)
            inside = [
                x <= left and y <= top and right <= x + width and bottom <= y + height
                for x, y, width, height in (group["bounding"] for group in groups)
            ]
            assert inside.count(True) == 1, f"{node['type']} {node['id']}"

    def test_links_go_from_left_to_right(self, path: Path) -> None:
        graph = _read(path)
        nodes = {node["id"]: node for node in graph["nodes"]}
        for _, source, _, target, *_ in graph["links"]:
            assert nodes[source]["pos"][0] <= nodes[target]["pos"][0]

    def test_notes_say_what_it_is_and_where_ones_own_images_go(self, path: Path) -> None:
        texts = [node["widgets_values"][0] for node in _read(path)["nodes"] if node["type"] in NOTES]
        assert len(texts) >= 2
        if any(node["type"] == "ContextDiffusionExampleImages" for node in _read(path)["nodes"]):
            assert any("Load Image" in text or "Your own style" in text for text in texts)
            # Load Image leaves a transparent picture on black.
            assert any("Join Image with Alpha" in text for text in texts)

    def test_seeds_stay_as_they_are(self, path: Path) -> None:
        values = [value for node in _read(path)["nodes"] for value in node.get("widgets_values") or []]
        assert not {"randomize", "increment", "decrement"} & {value for value in values if isinstance(value, str)}


@pytest.mark.parametrize("path", RUNNING, ids=lambda path: path.stem)
def test_has_a_picture(path: Path) -> None:
    with Image.open(path.with_suffix(".jpg")) as image:
        assert image.format == "JPEG" and min(image.size) >= 256
    assert path.with_suffix(".jpg").stat().st_size <= 60_000


def test_the_server_offers_them_with_their_pictures(host: Server) -> None:
    offered = host.get("/workflow_templates")["context-diffusion"]
    assert sorted(offered) == [path.stem for path in ALL]
    for path in RUNNING:
        for file in (path, path.with_suffix(".jpg")):
            served = host.request(f"/api/workflow_templates/context-diffusion/{quote(file.name)}")
            assert served == file.read_bytes()


def test_every_node_of_ours_has_a_help_page(host: Server) -> None:
    ours = [name for name, info in host.get("/object_info").items() if _is_ours(info)]
    assert len(ours) == 10
    for name in ours:
        page = host.request(f"/extensions/context-diffusion/docs/{name}.md").decode()
        assert page.startswith("# ") and "## Inputs" in page and "## Outputs" in page and "## Common mistakes" in page
        assert "](" in page, f"{name} has no picture"


def test_every_picture_of_a_help_page_is_there() -> None:
    pages = sorted((PACK / "web" / "docs").glob("*.md"))
    assert pages
    for page in pages:
        for link in re.findall(r"!\[[^]]*\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
            file = page.parent / link
            assert file.is_file() and file.stat().st_size <= 60_000, f"{page.name}: {link}"


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.stem)
def test_has_only_native_nodes_and_ours(host: Server, path: Path) -> None:
    info = host.get("/object_info")
    for node in _read(path)["nodes"]:
        if node["type"] not in NOTES:
            assert _is_ours(info[node["type"]]) or not info[node["type"]]["python_module"].startswith("custom_nodes")


def _is_ours(info: dict) -> bool:
    return info["python_module"] == "custom_nodes.context-diffusion"


@pytest.mark.slow
@pytest.mark.parametrize("path", RUNNING, ids=lambda path: path.stem)
def test_runs_to_the_same_image_twice(host: Server, path: Path) -> None:
    first, _ = _run(host, path)
    executed = False
    for _ in range(5):
        # The server drops its cache when it is idle, so a prompt that comes right behind may still find it.
        host.free()
        time.sleep(2)
        second, executed = _run(host, path)
        if executed:
            break
    assert executed, "every run found the results of the one before"
    assert len(first) == len(second) >= 1
    for one, other in zip(first, second, strict=True):
        assert one.std() > 1, "the image is one flat color"
        assert np.array_equal(one, other)


def _run(host: Server, path: Path) -> tuple[list[np.ndarray], bool]:
    """The saved images, and whether every node was executed for them."""
    prompt = to_prompt(_read(path), host.get("/object_info"))
    history = host.run(prompt)
    saved, _ = images_of(host, history)
    return [np.asarray(image).astype(float) for image in saved], history.executed == set(prompt.nodes)


class TestFluxRedux:
    """The workflow for weights of the user's own, without them."""

    @pytest.fixture(scope="class")
    @staticmethod
    def with_names(comfyui: Host, start_server, tmp_path_factory: pytest.TempPathFactory) -> Server:
        """A server that has files of the right names, with nothing in them."""
        folder = tmp_path_factory.mktemp("weights")
        models = {}
        for kind, names in OWN_WEIGHTS.items():
            for name in names:
                (folder / name).touch()
                models[f"{kind}/{name}"] = folder / name
        return start_server(comfyui, models=models)

    @pytest.fixture
    @staticmethod
    def path() -> Path:
        (path,) = set(ALL) - set(RUNNING)
        return path

    def test_its_note_names_every_file_that_it_asks_for(self, path: Path) -> None:
        nodes = _read(path)["nodes"]
        note = "".join(node["widgets_values"][0] for node in nodes if node["type"] in NOTES)
        for kind, names in OWN_WEIGHTS.items():
            assert kind in note and all(name in note for name in names)
        asked = {
            value
            for node in nodes
            if node["type"] not in NOTES
            for value in node.get("widgets_values") or []
            if str(value).endswith(".safetensors")
        }
        assert asked == {name for names in OWN_WEIGHTS.values() for name in names}

    def test_a_server_with_these_files_accepts_it(self, with_names: Server, path: Path) -> None:
        prompt = to_prompt(_read(path), with_names.get("/object_info"))
        # Queued is validated; what an empty file makes of the run is no matter.
        prompt_id = with_names.queue(prompt)
        with_names.post("/interrupt", {})
        with_names.post("/queue", {"delete": [prompt_id]})

    def test_its_references_are_averaged_and_projected_as_wide_as_flux_reads(self, host: Server, path: Path) -> None:
        """The nodes between the loaders and the sampler, on random SigLIP and Redux parts of a small width."""
        graph = to_prompt(_read(path), host.get("/object_info"))
        prompt = Prompt()
        vision = prompt.add("ProbeClipVision", width=12, image_size=32, siglip=True, wait=0.0)
        style = prompt.add("ProbeStyleModel", vision_width=12, text_width=16, n_tokens=0, redux=True)
        text = prompt.add("ProbeText", seed=0, width=16, tokens=5, batch=1, mask="")
        wanted = {"ContextDiffusionExampleImages", "ContextDiffusionEncodeVisualContext", "StyleModelApply"}
        stand_ins = {"CLIPVisionLoader": vision, "StyleModelLoader": style, "FluxGuidance": text}
        moved = {
            node_id: stand_ins[node["class_type"]]
            for node_id, node in graph.nodes.items()
            if node["class_type"] in stand_ins
        }
        for node_id, node in graph.nodes.items():
            if node["class_type"] in wanted:
                inputs = {
                    name: moved[value[0]][value[1]] if isinstance(value, list) else value
                    for name, value in node["inputs"].items()
                }
                moved[node_id] = prompt.add(node["class_type"], inputs)
                last = moved[node_id]
        probe = prompt.add("ProbeSave", value=last[0])
        tensors = host.tensors(host.run(prompt), probe)
        # 5 tokens of text and one image's worth of tokens, however many references: 32 px in patches of 8.
        assert tensors["0.0"].shape == (1, 5 + 16, 16)
