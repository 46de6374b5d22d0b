"""Many images side by side, with labels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..errors import ContextDiffusionError
from .check import check_images
from .fit import fit_image

_GAP = 4


def image_grid(rows: Sequence[Sequence[Tensor | None]], labels: Sequence[str] | None = None) -> Tensor:
    """Lay images out in rows on white; all cells take the size of the first image.

    Args:
        rows: each a sequence of images (3, H, W) in [0, 1]; None leaves a cell empty. Rows may differ in
            length.
        labels: one a column, written above it.

    Returns:
        (3, H, W), float32, in [0, 1], on the CPU.

    Raises:
        ContextDiffusionError: no image at all, a bad image, or more labels than columns.
    """
    columns = max((len(row) for row in rows), default=0)
    images = [image for row in rows for image in row if image is not None]
    if not images:
        raise ContextDiffusionError("no images for a grid; give at least one")
    labels = list(labels or [])
    if len(labels) > columns:
        raise ContextDiffusionError(f"{len(labels)} labels for {columns} columns; give one for each column")
    height, width = check_images(images[0], "grid image").shape[-2:]
    header = _header(labels, columns, width)
    top = header.shape[1]
    grid = torch.ones(3, top + len(rows) * (height + _GAP) + _GAP, columns * (width + _GAP) + _GAP)
    grid[:, :top] = header
    for row_number, row in enumerate(rows):
        for column, image in enumerate(row):
            if image is None:
                continue
            batch = check_images(image, f"grid image in row {row_number + 1}, column {column + 1}")
            if len(batch) != 1:
                raise ContextDiffusionError(f"a grid cell got {len(batch)} images, expected one")
            cell = fit_image(batch[0].detach().float().cpu(), (height, width), "pad")
            y, x = top + _GAP + row_number * (height + _GAP), _GAP + column * (width + _GAP)
            grid[:, y : y + height, x : x + width] = cell
    return grid


def _header(labels: Sequence[str], columns: int, width: int) -> Tensor:
    """The strip (3, h, W) with the labels, h = 0 without any; text shrinks to its column."""
    total = columns * (width + _GAP) + _GAP
    if not any(labels):
        return torch.ones(3, 0, total)
    from PIL import Image, ImageDraw, ImageFont

    largest = max(9, width // 9)
    strip = Image.new("RGB", (total, round(1.6 * largest)), "white")
    draw = ImageDraw.Draw(strip)
    for column, text in enumerate(labels):
        size = largest
        font = ImageFont.load_default(size)
        while draw.textlength(text, font=font) > width and size > 6:
            size -= 1
            font = ImageFont.load_default(size)
        middle = (_GAP + column * (width + _GAP) + width / 2, strip.height / 2)
        draw.text(middle, text, fill="black", font=font, anchor="mm")
    return torch.from_numpy(np.array(strip)).permute(2, 0, 1).float() / 255
