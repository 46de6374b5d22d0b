"""The picture of a held-out run: what was asked for, what is right, what was made."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from ..images import image_grid, save_image
from .heldout import load_images
from .protocol import PARTS, Case, contexts, queries, truths

if TYPE_CHECKING:
    from ..data.library import EmojiLibrary

LABELS = ("query", "context", "context", "context", "truth", "C+P", "C", "P")


def heldout_rows(cases: Sequence[Case], transforms: int = 3) -> list[tuple[str, int]]:
    """Which cases are shown, as (part, position in the part): the middle case of every style, some transforms.

    The choice depends on the protocol alone, never on what was made.
    """
    rows = []
    for part in PARTS:
        of_part = [case for case in cases if case.part == part]
        by_style: dict[str, list[int]] = {}
        for position, case in enumerate(of_part):
            by_style.setdefault(case.style, []).append(position)
        middles = [positions[len(positions) // 2] for positions in by_style.values()]
        rows += [(part, position) for position in (middles[:transforms] if part == "transforms" else middles)]
    return rows


def write_heldout_grid(
    library: EmojiLibrary, cases: Sequence[Case], images: Path, out: Path, batch_size: int = 32
) -> Path:
    """Write `heldout-grid.png`, first seed: one row a case, the columns of `LABELS`.

    Args:
        library: the emoji data set.
        cases: of the run.
        images: folder of its generated images.
        out: folder of the picture.
        batch_size: of the run.
    """
    made: dict[tuple[str, str], Tensor] = {}
    rows = []
    for part, position in heldout_rows(cases):
        case = [[case for case in cases if case.part == part][position]]
        row = [queries(library, case)[0], *contexts(library, case)[0], truths(library, case)[0]]
        for setting in ("cp", "c", "p"):
            if part == "transforms" and setting != "c":
                row.append(None)
                continue
            if (part, setting) not in made:
                made[part, setting] = load_images(images, cases, part, setting, 0, batch_size)
            row.append(made[part, setting][position].float() / 255)
        rows.append(row)
    path = out / "heldout-grid.png"
    save_image(image_grid(rows, LABELS), path)
    return path
