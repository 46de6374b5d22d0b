"""Tensors -> PIL images and files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import ContextDiffusionError
from ..files import write_atomically
from .check import check_images

if TYPE_CHECKING:
    from PIL import Image

_FORMATS: dict[str, tuple[str, dict[str, Any]]] = {
    ".png": ("PNG", {}),
    ".jpg": ("JPEG", {"quality": 95}),
    ".jpeg": ("JPEG", {"quality": 95}),
    ".webp": ("WEBP", {"lossless": True}),
    ".bmp": ("BMP", {}),
    ".tif": ("TIFF", {}),
    ".tiff": ("TIFF", {}),
}


def to_pil(image: Tensor) -> Image.Image:
    """Convert one image to 8-bit RGB, rounding to the nearest of 256 steps.

    Args:
        image: (3, H, W) or (1, 3, H, W) in [0, 1].

    Raises:
        ContextDiffusionError: more than one image, or one that `check_images` refuses.
    """
    from PIL import Image

    images = check_images(image, "image")
    if len(images) != 1:
        raise ContextDiffusionError(f"got {len(images)} images, expected one; pass them one at a time")
    pixels = (images[0].detach().float() * 255).round().to(torch.uint8)
    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().cpu().numpy())


def save_image(image: Tensor, path: str | os.PathLike[str]) -> Path:
    """Write one image to a file whose suffix names the format; missing folders are made.

    The file appears whole or not at all.

    Args:
        image: (3, H, W) or (1, 3, H, W) in [0, 1].
        path: the file, ending in .png, .jpg, .webp (lossless), .bmp or .tif.

    Returns:
        The path.

    Raises:
        ContextDiffusionError: an unknown suffix, a bad image, or a folder that is read-only or full.
    """
    path = check_image_path(path)
    format_name, options = _FORMATS[path.suffix.lower()]
    pil = to_pil(image)
    with write_atomically(path) as temporary:
        pil.save(temporary, format=format_name, **options)
    return path


def check_image_path(path: str | os.PathLike[str]) -> Path:
    """Refuse a file name that `save_image` could not write to, before the work that makes the image.

    Raises:
        ContextDiffusionError: a folder, or a suffix that names no known format.
    """
    path = Path(path)
    if os.path.isdir(path):
        raise ContextDiffusionError(f"cannot write {path}: it is a folder; give a file name in it")
    if path.suffix.lower() not in _FORMATS:
        raise ContextDiffusionError(
            f"cannot write {path}: its suffix {path.suffix!r} names no known format; use .png, .jpg or .webp"
        )
    return path
