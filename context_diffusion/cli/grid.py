"""Inputs and outputs side by side in one picture."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

# Wider pictures do not fit on a page.
MOST_COLUMNS = 8


def inputs_and_outputs(query: Tensor | None, map_name: str, context: list[Tensor], outputs: list[Tensor]) -> Tensor:
    """Query, its map, context images and outputs with labels, in lines of at most `MOST_COLUMNS`.

    Args:
        query: (3, H, W) in [0, 1], or None.
        map_name: which map the layout encoder saw; it gets a cell of its own unless it is `none`.
        context: any number of (3, h, w) in [0, 1], of any sizes.
        outputs: at least one (3, H, W) in [0, 1]; all cells take their size.

    Returns:
        (3, height, width) in [0, 1].
    """
    import torch

    from ..images import fit_image, image_grid
    from ..maps import make_map

    cells: list[tuple[Tensor | None, str]] = []
    if query is not None:
        cells.append((query, "query"))
        if map_name != "none":
            cells.append((make_map(query, map_name)[0], map_name))
    for name, images in (("context", context), ("output", outputs)):
        cells += [(image, f"{name} {i}" if len(images) > 1 else name) for i, image in enumerate(images, 1)]
    columns = min(MOST_COLUMNS, len(cells))
    cells += [(None, "")] * (-len(cells) % columns)
    size = tuple(outputs[0].shape[-2:])
    lines = []
    for start in range(0, len(cells), columns):
        line = cells[start : start + columns]
        images = [None if image is None else fit_image(image, size, "pad") for image, _ in line]
        lines.append(image_grid([images], [label for _, label in line]))
    return torch.cat(lines, dim=1)
