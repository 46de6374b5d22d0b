"""Flat regions of one colour each."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

# Sixteen colours, told apart easily; the largest region (most often the background) gets the first.
_PALETTE = np.array(
    [
        (40, 40, 48), (230, 60, 60), (60, 130, 235), (250, 205, 50), (55, 175, 90), (165, 80, 210),
        (245, 140, 40), (70, 205, 215), (240, 120, 185), (150, 100, 60), (165, 220, 80), (25, 65, 150),
        (140, 25, 60), (205, 205, 205), (0, 110, 100), (190, 165, 245),
    ],
    dtype=np.float32,
) / 255  # fmt: skip

# A 3x3 window that varies less than this in every channel is even.
_EVEN = 0.06
# Uneven pixels this close to an even area, in pixels of a picture of 128, are its antialiased rim.
_RIM = 3.0


def segmentation(images: Tensor) -> Tensor:
    """Areas of like colour, coloured from a fixed palette by order of size.

    A stand-in for a semantic segmentation network: regions are not objects, and a region's colour says
    how large it is among its neighbours and not what it is. Colours repeat after sixteen regions. Even
    areas are one region each; what lies further from those, as in photographs, is divided by
    Felzenszwalb's graph method (scikit-image), which alone would make regions of the antialiased rims in
    drawings.

    Args:
        images: (B, 3, H, W) in [0, 1].

    Returns:
        (B, 3, H, W) in [0, 1].
    """
    pictures = images.detach().float().permute(0, 2, 3, 1).cpu().numpy()
    maps = np.stack([_paint(_regions(picture)) for picture in pictures])
    return torch.from_numpy(maps).permute(0, 3, 1, 2).contiguous().to(images.device, images.dtype)


def _regions(picture: np.ndarray) -> np.ndarray:
    """(H, W, 3) in [0, 1] -> region labels (H, W), integers."""
    from scipy.ndimage import distance_transform_edt, label, maximum_filter, minimum_filter
    from skimage.segmentation import felzenszwalb

    height, width, _ = picture.shape
    smallest = max(4, round(height * width / 1000))
    spread = maximum_filter(picture, size=(3, 3, 1)) - minimum_filter(picture, size=(3, 3, 1))
    areas, _ = label(spread.max(axis=2) < _EVEN)
    size = np.bincount(areas.ravel())
    size[0] = 0
    # Smaller spots are left to their neighbours; a window of 3x3 takes one pixel off every side.
    areas[size[areas] < smallest // 2] = 0
    if areas.any():
        distance, (rows, columns) = distance_transform_edt(areas == 0, return_indices=True)
        areas = areas[rows, columns]
        far = distance > _RIM * max(1.0, min(height, width) / 128)
        if not far.any():
            return areas
    else:
        far = np.ones((height, width), dtype=bool)
    graph = felzenszwalb(picture, scale=150, sigma=0.8, min_size=smallest)
    return np.where(far, graph + areas.max() + 1, areas)


def _paint(labels: np.ndarray) -> np.ndarray:
    """Region labels (H, W) -> colours (H, W, 3): the larger the region, the earlier its colour."""
    _, first, inverse, area = np.unique(labels, return_index=True, return_inverse=True, return_counts=True)
    # Regions of equal area go in reading order.
    order = np.lexsort((first, -area))
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order))
    return _PALETTE[rank[inverse.reshape(labels.shape)] % len(_PALETTE)]
