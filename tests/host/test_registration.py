"""What a server knows of the pack once it is up: its nodes, what it says of each, and what loading it costs."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

from .hosts import Host
from .server import PACK, PACK_NAME, Server

IDS = {
    "ContextDiffusionLoader",
    "ContextDiffusionEncodeVisualContext",
    "ContextDiffusionCombine",
    "ContextDiffusionApplyQueryLayout",
    "ContextDiffusionSampler",
    "ContextDiffusionGuider",
    "ContextDiffusionSaveVisualContext",
    "ContextDiffusionLoadVisualContext",
    "ContextDiffusionExampleImages",
    "ContextDiffusionLayoutMap",
}


@pytest.fixture(scope="module")
def nodes(host: Server) -> dict[str, dict]:
    """Our nodes, as the server describes them to the interface."""
    return {name: node for name, node in host.get("/object_info").items() if name.startswith("ContextDiffusion")}


def test_every_node_is_there(nodes: dict[str, dict]) -> None:
    # Saved graphs name these: an id that goes missing breaks them.
    assert set(nodes) == IDS


def inputs_of(node: dict) -> dict[str, list]:
    return {**node["input"].get("required", {}), **node["input"].get("optional", {})}


def test_everything_explains_itself(nodes: dict[str, dict]) -> None:
    for name, node in nodes.items():
        assert node["category"] == "Context Diffusion" and node["display_name"] != name, name
        assert len(node["description"]) > 40, name
        assert "context diffusion" in node["search_aliases"], name
        for key, (_, *settings) in inputs_of(node).items():
            assert settings and settings[0].get("tooltip", "").endswith("."), (name, key)
        tips = node["output_tooltips"]
        assert len(tips) == len(node["output"]) and all(tip and tip.endswith(".") for tip in tips), name


def test_outputs_stay_where_they_are(nodes: dict[str, dict]) -> None:
    # Saved graphs name an output by its place.
    parts = ["MODEL", "CLIP", "VAE", "CLIP_VISION", "STYLE_MODEL", "CONTROL_NET"]
    assert nodes["ContextDiffusionLoader"]["output_name"] == parts
    branches = ["positive", "context_only", "negative"]
    assert nodes["ContextDiffusionCombine"]["output_name"] == branches
    assert nodes["ContextDiffusionApplyQueryLayout"]["output_name"] == [*branches, "map"]
    assert nodes["ContextDiffusionEncodeVisualContext"]["output_name"] == ["visual_context", "seen"]


def test_every_socket_is_native(nodes: dict[str, dict], host: Server) -> None:
    known = set()
    for name, node in host.get("/object_info").items():
        if name not in nodes and not name.startswith("Probe"):
            known |= {kind for kind in node["output"] if isinstance(kind, str)}
            known |= {entry[0] for entry in inputs_of(node).values() if isinstance(entry[0], str)}
    for name, node in nodes.items():
        kinds = [*node["output"], *(entry[0] for entry in inputs_of(node).values())]
        for kind in kinds:
            assert isinstance(kind, list) or kind in known | {"COMFY_AUTOGROW_V3"}, (name, kind)


def test_secondary_widgets_are_advanced(nodes: dict[str, dict]) -> None:
    advanced = {
        (name, key)
        for name, node in nodes.items()
        for key, entry in inputs_of(node).items()
        if entry[1].get("advanced")
    }
    assert ("ContextDiffusionEncodeVisualContext", "aggregation") in advanced
    assert ("ContextDiffusionSaveVisualContext", "overwrite") in advanced
    # What people come to change is in sight.
    for key in ("model_name", "weights", "strength", "text_guidance_scale", "context_guidance_scale", "seed"):
        assert key not in {name for _, name in advanced}


def test_the_bundled_model_is_offered_first(nodes: dict[str, dict]) -> None:
    kind, settings = inputs_of(nodes["ContextDiffusionLoader"])["model_name"]
    options = settings["options"] if kind == "COMBO" else kind
    assert options[0] == "emoji-128 (bundled)"


def test_the_log_has_no_complaint_of_ours(host: Server) -> None:
    lines = [line for line in host.start_log.splitlines() if PACK_NAME in line or "context_diffusion" in line]
    assert lines
    for line in lines:
        assert not re.search(r"error|warning|traceback|fail|cannot|unable|skip", line, re.I), line


def test_loading_needs_the_standard_library_and_the_host_alone(comfyui: Host) -> None:
    code = f"""
import asyncio, importlib.util, sys
sys.argv = ["main.py", "--cpu"]
import comfy.options; comfy.options.enable_args_parsing()
import comfy_api.latest, folder_paths, nodes
before = set(sys.modules)
spec = importlib.util.spec_from_file_location("pack", {str(PACK / "__init__.py")!r}, submodule_search_locations=[{str(PACK)!r}])
sys.modules["pack"] = pack = importlib.util.module_from_spec(spec)
spec.loader.exec_module(pack)
async def load():
    for node in await (await pack.comfy_entrypoint()).get_node_list():
        node.GET_SCHEMA()
asyncio.run(load())
new = {{name.partition(".")[0] for name in set(sys.modules) - before}}
print("new:", *sorted(new - set(sys.stdlib_module_names)))
"""  # noqa: E501
    found = subprocess.run(
        [str(comfyui.python), "-c", code], cwd=comfyui.path, capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr[-3000:]
    new = set(re.search(r"^new: (.*)$", found.stdout, re.M)[1].split())
    assert new <= {"pack", "comfyui_version"}, new


# Without a host


def load_pack(version: str | None, tmp_path: Path) -> subprocess.CompletedProcess:
    """Import the pack where `comfyui_version` says `version`, or where there is none."""
    if version:
        (tmp_path / "comfyui_version.py").write_text(f'__version__ = "{version}"\n')
        api = tmp_path / "comfy_api" / "latest"
        api.mkdir(parents=True)
        (api.parent / "__init__.py").touch()
        # All that an older host has of what the pack uses.
        (api / "__init__.py").write_text("class ComfyExtension:\n    pass\n")
    code = f"""
import asyncio, importlib.util, logging, sys
logging.basicConfig(format="%(message)s")
spec = importlib.util.spec_from_file_location("pack", {str(PACK / "__init__.py")!r}, submodule_search_locations=[{str(PACK)!r}])
sys.modules["pack"] = pack = importlib.util.module_from_spec(spec)
spec.loader.exec_module(pack)
async def load():
    return await (await pack.comfy_entrypoint()).get_node_list()
if {bool(version)}:
    print(asyncio.run(load()))
"""  # noqa: E501
    return subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("version", ["0.11.1", "0.3.75"])
def test_an_older_host_gets_one_clear_line(version: str, tmp_path: Path) -> None:
    found = load_pack(version, tmp_path)
    assert found.returncode == 0, found.stderr
    assert found.stdout.strip() == "[]"
    (line,) = found.stderr.strip().splitlines()
    assert version in line and "0.12.0" in line and "update ComfyUI" in line


def test_the_pack_is_a_plain_package_elsewhere(tmp_path: Path) -> None:
    found = load_pack(None, tmp_path)
    assert (found.returncode, found.stderr) == (0, "")


def test_the_registry_is_told_the_same_floor() -> None:
    spec = importlib.util.spec_from_file_location("floor", PACK / "nodes" / "host_version.py")
    floor = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(floor)
    text = (PACK / "pyproject.toml").read_text()
    assert f'requires-comfyui = ">={".".join(map(str, floor.FLOOR))}"' in text
