"""Flat regions of one colour each."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

# Sixteen colours, told apart easily; the largest region (most often the background) gets the first.
_PALETTE = np.array(
    [
        (40, 40, 48), (230, 60, 60), (60, 130, 235), (250, 205, 50), (55, 175, 90), (165, 80, 210),
        (245, 140, 40), (70, 205, 215), (240, 120, 185), (150, 100, 60), (165, 220, 80), (25, 65, 150),
        (140, 25, 60), (205, 205, 205), (0, 110, 100), (190, 165, 245),
    ],
    dtype=np.float32,
) / 255  # fmt: skip

# Contrast in one channel, within three pixels, above which a border is sharpened.
_STEP = 0.1


def segmentation(images: Tensor) -> Tensor:
    """Felzenszwalb's graph segmentation (scikit-image), regions coloured from a fixed palette by order of area.

    A stand-in for a semantic segmentation network: regions are areas of like colour and not objects, and
    a region's colour says how large it is among its neighbours and not what it is. Colours repeat after
    sixteen regions.

    Args:
        images: (B, 3, H, W) in [0, 1].

    Returns:
        (B, 3, H, W) in [0, 1].
    """
    from skimage.segmentation import felzenszwalb

    pictures = _sharpen(images.detach().float()).permute(0, 2, 3, 1).cpu().numpy()
    # Smaller regions are specks; they join their neighbours.
    smallest = max(4, round(pictures.shape[1] * pictures.shape[2] / 400))
    maps = [_paint(felzenszwalb(p, scale=150, sigma=0, min_size=smallest)) for p in pictures]
    stacked = torch.from_numpy(np.stack(maps)).permute(0, 3, 1, 2).contiguous()
    return stacked.to(images.device, images.dtype)


def _sharpen(images: Tensor) -> Tensor:
    """Move the mixed pixels of antialiased borders to one side or the other, else each rim becomes a region.

    Where a 3x3 window holds a clear step, a pixel takes the window's darkest or brightest value,
    whichever is nearer (per channel; on a border between two colours all channels choose alike). Twice,
    for rims of two pixels.
    """
    for _ in range(2):
        high = F.max_pool2d(images, 3, stride=1, padding=1)
        low = -F.max_pool2d(-images, 3, stride=1, padding=1)
        nearer = torch.where(high - images < images - low, high, low)
        images = torch.where(high - low > _STEP, nearer, images)
    return images


def _paint(labels: np.ndarray) -> np.ndarray:
    """Region labels (H, W) -> colours (H, W, 3): the larger the region, the earlier its colour in the palette."""
    _, first, inverse, area = np.unique(labels, return_index=True, return_inverse=True, return_counts=True)
    # Regions of equal area go in reading order.
    order = np.lexsort((first, -area))
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order))
    return _PALETTE[rank[inverse.reshape(labels.shape)] % len(_PALETTE)]
