"""Mean and standard deviation of every colour channel, over as many images as one likes."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from ..errors import ContextDiffusionError
from .check import check_images
from .load import image_from_pil, list_images, load_image_as_tensor

Images = Tensor | str | os.PathLike[str] | Iterable


def calculate_mean_std(images: Images) -> tuple[Tensor, Tensor]:
    """Per-channel mean and population standard deviation; every pixel counts the same.

    Images are taken one at a time, so that a folder of any size needs the memory of its largest image.
    Sums run in float64 and are joined as pairs of mean and squared deviation, which loses nothing where
    the spread is small.

    Args:
        images: one image (3, H, W), a batch (B, 3, H, W), a file, a folder (searched with its
            subfolders), or an iterable of tensors, PIL images and paths. Values in [0, 1]; transparent
            pixels lie over white.

    Returns:
        mean (3,) and std (3,), float32.

    Raises:
        ContextDiffusionError: no image at all, or one that cannot be used.
    """
    count = 0
    mean = torch.zeros(3, dtype=torch.float64)
    squares = torch.zeros(3, dtype=torch.float64)  # sum of squared deviations from the mean so far
    for image in _each(images):
        pixels = image.detach().cpu().double().reshape(3, -1)
        added = pixels.shape[1]
        image_mean = pixels.mean(dim=1)
        image_squares = (pixels - image_mean[:, None]).square().sum(dim=1)
        # Chan, Golub and LeVeque's update for joining two samples.
        difference = image_mean - mean
        total = count + added
        squares += image_squares + difference.square() * (count * added / total)
        mean += difference * (added / total)
        count = total
    if count == 0:
        raise ContextDiffusionError("no images to take statistics of; give at least one")
    return mean.float(), (squares / count).sqrt().float()


def _each(images: Images) -> Iterator[Tensor]:
    """Every image as (3, H, W)."""
    from PIL import Image

    if isinstance(images, Tensor):
        yield from check_images(images)
    elif isinstance(images, Image.Image):
        yield image_from_pil(images)
    elif isinstance(images, (str, os.PathLike)):
        path = Path(images)
        if not path.is_dir():
            yield load_image_as_tensor(path)
            return
        files = list_images(path, recursive=True)
        if not files:
            raise ContextDiffusionError(f"folder {path} holds no images; expected PNG, JPEG or WebP files")
        for file in files:
            yield load_image_as_tensor(file)
    elif isinstance(images, Iterable) and not isinstance(images, (bytes, dict)):
        for item in images:
            yield from _each(item)
    else:
        raise ContextDiffusionError(
            f"got {type(images).__name__}, expected a tensor, a path or an iterable of tensors and paths"
        )
