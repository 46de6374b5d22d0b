"""Make what only a run can make: the bundled styles, the picture beside each workflow, those of the help pages.

    python -m tests.host.make_thumbnails

Run it after the bundled model, an example workflow or a node has changed. It starts the newest ComfyUI that `hosts.py`
finds, saves the styles with Save Visual Context, runs every workflow as it is, and writes
`context_diffusion/pretrained/styles/*.safetensors` and `workflows/*.jpg`. Each picture shows what the workflow saved
and, beneath it, what its previews showed: nothing is picked or retouched. With a browser (see `test_browser.py`) it
also takes the pictures in `web/docs/images`. Arguments (`styles`, `workflows`, `help`) make a part of it.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from .browser import BROWSER, TOOLS, missing_for_browser
from .hosts import Host, find_hosts
from .prompt import Prompt
from .server import PACK, PACK_NAME, History, Server
from .ui_graph import to_prompt

WORKFLOWS = PACK / "workflows"
STYLES = PACK / "context_diffusion" / "pretrained" / "styles"
BUNDLED_MODEL = "emoji-128 (bundled)"
# The bundled styles: name -> the example whose context images make it.
STYLE_EXAMPLES = {"black line art": "line-art", "blue and cream": "icon-set"}
HELP_PICTURES = PACK / "web" / "docs" / "images"
# Workflows that need weights of the user's own cannot be run here: their picture shows what goes into them.
NEEDS_OWN_WEIGHTS = "(needs your own weights)"

_SIDE = 384
_STRIP = 96
_EDGE = 6
_GROUND = (24, 24, 27)


def main(parts: list[str]) -> int:
    hosts, missing = find_hosts()
    if not hosts:
        print("\n".join(missing), file=sys.stderr)
        return 1
    works = {"styles": make_styles, "workflows": make_pictures, "help": make_help_pictures}
    unknown = sorted(set(parts) - set(works))
    if unknown:
        print(f"unknown: {', '.join(unknown)}; choose of {', '.join(works)}", file=sys.stderr)
        return 2
    for name, work in works.items():
        if not parts or name in parts:
            with tempfile.TemporaryDirectory() as folder:
                _with_server(hosts[0], Path(folder), work)
    return 0


def _with_server(host: Host, base: Path, work: Callable[[Server], None]) -> None:
    server = Server(host, base)
    try:
        work(server)
    finally:
        server.stop()


def make_styles(server: Server) -> None:
    """Save the bundled styles anew."""
    STYLES.mkdir(exist_ok=True)
    for name, example in STYLE_EXAMPLES.items():
        prompt = Prompt()
        loader = prompt.add("ContextDiffusionLoader", model_name=BUNDLED_MODEL)
        images = prompt.add("ContextDiffusionExampleImages", example=example)
        inputs = {f"images.image{index}": images[index] for index in range(3)}
        encoded = prompt.add(
            "ContextDiffusionEncodeVisualContext",
            inputs,
            clip_vision=loader[3],
            weights="",
            fit="crop",
            aggregation="mean",
        )
        prompt.add("ContextDiffusionSaveVisualContext", visual_context=encoded[0], name=name, overwrite=True)
        server.run(prompt)
        made = server.base / "models" / "visual_context" / f"{name}.safetensors"
        shutil.copyfile(made, STYLES / made.name)
        print(f"made {STYLES / made.name}", flush=True)


def make_pictures(server: Server) -> None:
    """Run every workflow and put its picture beside it."""
    info = server.get("/object_info")
    for path in sorted(WORKFLOWS.glob("*.json")):
        prompt = to_prompt(json.loads(path.read_text(encoding="utf-8")), info)
        if NEEDS_OWN_WEIGHTS in path.stem:
            sheet = captioned(*images_of(server, server.run(_inputs_alone(prompt))))
        else:
            sheet = picture(*images_of(server, server.run(prompt)))
        sheet.save(path.with_suffix(".jpg"), quality=88, optimize=True)
        print(f"made {path.with_suffix('.jpg')}", flush=True)


def make_help_pictures(server: Server) -> None:
    """Take the pictures of the help pages in a browser."""
    missing = missing_for_browser()
    if missing:
        print(f"no pictures of the help pages were taken: {missing}", file=sys.stderr)
        return
    HELP_PICTURES.mkdir(parents=True, exist_ok=True)
    driver = Path(__file__).with_name("help_pictures.mjs")
    command = ["node", str(driver), str(TOOLS), str(BROWSER), server.url, PACK_NAME, str(HELP_PICTURES)]
    subprocess.run(command, check=True)


def _inputs_alone(prompt: Prompt) -> Prompt:
    """The example images of a prompt, shown."""
    shown = Prompt()
    for node in list(prompt.nodes.values()):
        if node["class_type"] == "ContextDiffusionExampleImages":
            example = shown.add(node["class_type"], node["inputs"])
            for index in range(3):
                shown.add("PreviewImage", images=example[index])
    return shown


def images_of(server: Server, history: History) -> tuple[list[Image.Image], list[Image.Image]]:
    """What a run saved, and what it only showed, each in the order of the node ids."""
    found: dict[str, list[Image.Image]] = {"output": [], "temp": []}
    for node in sorted(history.outputs, key=lambda node: [int(part) for part in node.split(":")]):
        for file in history.outputs[node].get("images", []):
            with Image.open(server.base / file["type"] / file["subfolder"] / file["filename"]) as image:
                found[file["type"]].append(image.convert("RGB"))
    return found["output"], found["temp"]


def picture(saved: list[Image.Image], shown: list[Image.Image]) -> Image.Image:
    """The last saved image, and beneath it the previews as small tiles."""
    large = saved[-1].resize((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    tiles = shown[:8]
    side = min(_STRIP - _EDGE, (_SIDE + _EDGE) // max(len(tiles), 1) - _EDGE)
    sheet = Image.new("RGB", (_SIDE, _SIDE + (side + 2 * _EDGE if tiles else 0)), _GROUND)
    sheet.paste(large, (0, 0))
    left = (_SIDE - len(tiles) * side - (len(tiles) - 1) * _EDGE) // 2
    for index, tile in enumerate(tiles):
        small = tile.resize((side, side), Image.Resampling.LANCZOS)
        sheet.paste(small, (left + index * (side + _EDGE), _SIDE + _EDGE))
    return sheet


def captioned(saved: list[Image.Image], shown: list[Image.Image]) -> Image.Image:
    """Inputs alone, in place of a result that cannot be had here."""
    sheet = Image.new("RGB", (_SIDE, _SIDE), _GROUND)
    side = (_SIDE - 4 * _EDGE) // 3
    for index, tile in enumerate(shown[:3]):
        small = tile.resize((side, side), Image.Resampling.LANCZOS)
        sheet.paste(small, (_EDGE + index * (side + _EDGE), (_SIDE - side) // 2 - 30))
    font = ImageFont.load_default(22)
    text = "references averaged into one\nneeds your own weights"
    ImageDraw.Draw(sheet).text((_SIDE // 2, _SIDE - 80), text, (230, 230, 235), font, "mm", align="center")
    return sheet


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
