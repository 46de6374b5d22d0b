"""Bringing an image to a size: crop, pad or stretch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ..choices import FITS
from ..errors import ContextDiffusionError
from ..ranges import whole_number
from .check import check_images

Color = str | Sequence[float]
Size = int | tuple[int, int]


def fit_image(image: Tensor, size: Size, fit: str = "crop", background: Color = "white") -> Tensor:
    """Resize to exactly `size` (antialiased bicubic).

    Args:
        image: (3, H, W) or (B, 3, H, W) in [0, 1].
        size: side of a square, or (height, width), in pixels.
        fit: `crop` fills the size and cuts off what stands over, evenly on both sides; `pad` keeps the
            whole image and fills up with `background`; `stretch` changes the proportions.
        background: colour for `pad`, see `parse_color`.

    Returns:
        (3, height, width) or (B, 3, height, width) in [0, 1].

    Raises:
        ContextDiffusionError: a size that is not positive, an unknown fit or colour, or bad images.
    """
    height, width = check_size(size)
    if fit not in FITS:
        raise ContextDiffusionError(f"fit is {fit!r}; choose one of {', '.join(FITS)}")
    images = check_images(image, "image to fit")
    if fit == "stretch":
        images = _resize(images, height, width)
    else:
        rows, columns = images.shape[-2:]
        ratios = (height / rows, width / columns)
        scale = max(ratios) if fit == "crop" else min(ratios)
        images = _resize(images, max(1, round(rows * scale)), max(1, round(columns * scale)))
        rows, columns = images.shape[-2:]
        if fit == "crop":
            top, left = (rows - height) // 2, (columns - width) // 2
            images = images[..., top : top + height, left : left + width]
        elif (rows, columns) != (height, width):
            canvas = parse_color(background).to(images.device, images.dtype).view(1, 3, 1, 1)
            canvas = canvas.repeat(len(images), 1, height, width)
            top, left = (height - rows) // 2, (width - columns) // 2
            canvas[..., top : top + rows, left : left + columns] = images
            images = canvas
    return images[0] if image.ndim == 3 else images


def check_size(size: Size) -> tuple[int, int]:
    """(height, width) of a size given as one side or as a pair.

    Raises:
        ContextDiffusionError: anything but one or two whole numbers above 0.
    """
    pair = size if isinstance(size, (tuple, list)) else (size, size)
    if len(pair) != 2 or not all(side in whole_number(1) for side in pair):
        raise ContextDiffusionError(f"size is {size!r}; give {whole_number(1)}, or (height, width), in pixels")
    return int(pair[0]), int(pair[1])


def parse_color(color: Color) -> Tensor:
    """A colour as a tensor (3,) in [0, 1].

    Args:
        color: a CSS name or code (`white`, `#1e90ff`, `rgb(30, 144, 255)`), or three numbers in [0, 1].

    Raises:
        ContextDiffusionError: anything else.
    """
    if isinstance(color, str):
        from PIL import ImageColor

        try:
            return torch.tensor(ImageColor.getrgb(color)[:3], dtype=torch.float32) / 255
        except ValueError as error:
            raise ContextDiffusionError(
                f"colour is {color!r}; give a name such as white, a code such as #1e90ff or three numbers"
            ) from error
    try:
        values = torch.tensor([float(value) for value in color])
    except (TypeError, ValueError) as error:
        raise ContextDiffusionError(f"colour is {color!r}; give a name, a code or three numbers") from error
    if values.shape != (3,) or not ((values >= 0) & (values <= 1)).all():
        raise ContextDiffusionError(f"colour is {color!r}; give three numbers in [0, 1]")
    return values


def _resize(images: Tensor, height: int, width: int) -> Tensor:
    if images.shape[-2:] == (height, width):
        return images
    resized = F.interpolate(images.float(), size=(height, width), mode="bicubic", antialias=True)
    return resized.clamp(0, 1).to(images.dtype)  # bicubic overshoots at edges
