"""Depth and surface normals of an inflated silhouette."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

# A pixel is foreground where one channel differs this much from the border colour (about 20 of 255).
_FOREGROUND_CONTRAST = 0.08
# Blur of the height before it is differentiated, in pixels: rounds the ridges of the distance transform.
_NORMAL_SIGMA = 2.0


def depth(images: Tensor) -> Tensor:
    """Depth of the silhouette blown up like a balloon; near is white, the background is exactly 0.

    A stand-in for a depth network: foreground is what differs from the median colour of the picture's
    border, holes filled, and its height follows from the distance to its rim alone. A disc becomes a
    half sphere; what is drawn inside the silhouette has no influence. Height 1 is half the shorter side.
    Meant for objects on a plain ground; on a full photograph it says little.

    Args:
        images: (B, 3, H, W) in [0, 1].

    Returns:
        (B, 3, H, W) in [0, 1], the three channels equal.
    """
    heights = torch.from_numpy(_heights(images)).clamp(0, 1).unsqueeze(1)
    return heights.to(images.device, images.dtype).repeat(1, 3, 1, 1)


def normal(images: Tensor) -> Tensor:
    """Surface normals of the same inflated silhouette as colours, RGB = (n + 1) / 2.

    A stand-in for a normal network, with the limits of `depth`. x points right, y up, z towards the
    viewer; the background faces the viewer: (0.5, 0.5, 1).

    Args:
        images: (B, 3, H, W) in [0, 1].

    Returns:
        (B, 3, H, W) in [0, 1]; 2 * map - 1 has length 1 at every pixel.
    """
    from scipy.ndimage import gaussian_filter

    heights = _heights(images)
    pixels = heights * (min(images.shape[-2:]) / 2)
    pixels = gaussian_filter(pixels, sigma=(0, _NORMAL_SIGMA, _NORMAL_SIGMA), mode="nearest")
    slope_x, slope_down = _differences(pixels, axis=2), _differences(pixels, axis=1)
    normals = np.stack([-slope_x, slope_down, np.ones_like(pixels)], axis=1)
    normals[:, :2] *= (heights > 0)[:, None]
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    return torch.from_numpy((normals + 1) / 2).to(images.device, images.dtype)


def _differences(values: np.ndarray, axis: int) -> np.ndarray:
    """Central differences; zero along an axis that is one pixel long."""
    return np.gradient(values, axis=axis) if values.shape[axis] > 1 else np.zeros_like(values)


def _heights(images: Tensor) -> np.ndarray:
    """Height of every pixel, (B, H, W) float32, in halves of the shorter side."""
    pictures = images.detach().float().cpu().numpy()
    return np.stack([_inflate(_silhouette(picture)) for picture in pictures])


def _silhouette(picture: np.ndarray) -> np.ndarray:
    """(3, H, W) -> bool (H, W): what differs from the border's median colour, with its holes."""
    from scipy.ndimage import binary_fill_holes

    sides = [picture[:, 0], picture[:, -1], picture[:, :, 0], picture[:, :, -1]]
    ground = np.median(np.concatenate(sides, axis=1), axis=1)
    different = np.abs(picture - ground[:, None, None]).max(axis=0) > _FOREGROUND_CONTRAST
    return binary_fill_holes(different)


def _inflate(mask: np.ndarray) -> np.ndarray:
    """bool (H, W) -> height (H, W): a circle's arc over the distance to the rim, for each connected part."""
    from scipy.ndimage import distance_transform_edt, label, maximum

    if not mask.any() or mask.all():  # no silhouette to inflate
        return np.zeros(mask.shape, dtype=np.float32)
    # The rim lies between two pixel centres.
    distance = np.where(mask, distance_transform_edt(mask) - 0.5, 0)
    parts, count = label(mask, structure=np.ones((3, 3)))
    radius = np.concatenate([[1.0], np.atleast_1d(maximum(distance, parts, np.arange(1, count + 1)))])[parts]
    height = np.sqrt(np.clip(distance * (2 * radius - distance), 0, None))
    return (height / (min(mask.shape) / 2)).astype(np.float32)
