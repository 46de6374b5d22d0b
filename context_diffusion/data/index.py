"""The folder of a data set: its images, its attributions, and the index that says that it is whole."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from ..errors import ContextDiffusionError
from ..files import write_atomically


def open_folder(out: Path, size: int) -> None:
    """Make the folder; images that an earlier run left in it are kept.

    Raises:
        ContextDiffusionError: it cannot be made, or holds images of another size.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ContextDiffusionError(f"cannot write to {out}: {error.strerror}; choose another --out folder") from error
    earlier = next((out / "images").glob("*/*.png"), None)
    if earlier is None:
        return
    with Image.open(earlier) as image:
        if image.size != (size, size):
            raise ContextDiffusionError(
                f"{out / 'images'} holds images of {image.width} pixels and --size is {size}: give another --out folder"
            )


def write_index(out: Path, index: dict, attribution: str) -> None:
    """Write `ATTRIBUTION.md` and, last of all, `index.json`."""
    text = json.dumps(index, indent=1, ensure_ascii=False)
    for name, content in (("ATTRIBUTION.md", attribution), ("index.json", text)):
        with write_atomically(out / name) as scratch:
            scratch.write_text(content, encoding="utf-8")


def read_index(folder: Path) -> dict:
    """What `write_index` wrote.

    Raises:
        ContextDiffusionError: the folder holds no finished data set.
    """
    try:
        return json.loads((folder / "index.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ContextDiffusionError(
            f"{folder} holds no data set (no readable index.json): run `context-diffusion data emoji --out {folder}` "
            "(or `data icons`, `data folder`) first"
        ) from error


def attribution_text(rows: Sequence[tuple[str, str, str]]) -> str:
    """Part, makers and licence of everything that a data set is made of, as Markdown."""
    return "\n".join(
        [
            "# Attributions",
            "",
            "The images were rendered over white from these works:",
            "",
            "| part | made by | licence |",
            "|---|---|---|",
            *(f"| {part} | {makers} | {licence} |" for part, makers, licence in rows),
            "",
        ]
    )
