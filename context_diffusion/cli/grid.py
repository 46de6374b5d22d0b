"""Inputs and outputs side by side in one picture."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    # An image, or none, and its label.
    Cell = tuple[Tensor | None, str]

# Wider pictures do not fit on a page.
MOST_COLUMNS = 8


def inputs_and_outputs(
    queries: Sequence[Tensor], map_name: str, context: Sequence[Tensor], outputs: Sequence[Tensor]
) -> Tensor:
    """Queries, their maps, context images and outputs with labels, in lines of at most `MOST_COLUMNS`.

    With one query or none everything stands in one line, while there is room; with several the context comes first,
    then each query with its outputs.

    Args:
        queries: (3, H, W) in [0, 1] each.
        map_name: which map the layout encoder saw; it gets a cell of its own unless it is `none`.
        context: any number of (3, h, w) in [0, 1], of any sizes.
        outputs: (3, H, W) in [0, 1], at least one, the same number for every query; all cells take their size.

    Returns:
        (3, height, width) in [0, 1].
    """
    import torch

    from ..maps import make_map

    shown = _numbered("context", context)
    several = len(queries) > 1
    groups = [shown] if several and shown else []
    share = len(outputs) // max(1, len(queries))
    for index, query in enumerate(queries or [None]):
        cells: list[Cell] = []
        if query is not None:
            cells.append((query, "query"))
            if map_name != "none":
                cells.append((make_map(query, map_name)[0], map_name))
        if not several:
            cells += shown
        groups.append(cells + _numbered("output", outputs[index * share : (index + 1) * share]))
    columns = min(MOST_COLUMNS, max(map(len, groups)))
    size = tuple(outputs[0].shape[-2:])
    return torch.cat([line for cells in groups for line in _lines(cells, columns, size)], dim=1)


def _numbered(name: str, images: Sequence[Tensor]) -> list[Cell]:
    return [(image, f"{name} {i}" if len(images) > 1 else name) for i, image in enumerate(images, 1)]


def _lines(cells: list[Cell], columns: int, size: tuple[int, int]) -> Iterator[Tensor]:
    """Strips (3, h, W) of `columns` cells each, the last one filled up with empty cells."""
    from ..images import fit_image, image_grid

    cells = cells + [(None, "")] * (-len(cells) % columns)
    for start in range(0, len(cells), columns):
        line = cells[start : start + columns]
        images = [None if image is None else fit_image(image, size, "pad") for image, _ in line]
        yield image_grid([images], [label for _, label in line])
