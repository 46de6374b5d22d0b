"""How well a generated image keeps the lines of its query: F1 of edges within one pixel."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from ..data.transforms import luma
from ..errors import ContextDiffusionError


def edges(images: Tensor) -> Tensor:
    """Thin edges of luminance: Canny with sigma 1 and fixed thresholds .05 and .15, the same for every image.

    Args:
        images: (B, 3, H, W) in [0, 1].

    Returns:
        (B, H, W) bool.
    """
    from skimage.feature import canny

    grey = luma(images)[:, 0].double().cpu().numpy()
    lines = [canny(image, sigma=1.0, low_threshold=0.05, high_threshold=0.15, mode="nearest") for image in grey]
    return torch.stack([torch.from_numpy(each) for each in lines]).to(images.device)


def edge_f1(found: Tensor, wanted: Tensor, tolerance: int = 1) -> Tensor:
    """F1 of edges: precision is the share of `found` near `wanted`, recall the reverse.

    Args:
        found: (B, H, W) bool, say `edges(generated)`.
        wanted: the same shape, say `edges` of the image that the query map was made of.
        tolerance: pixels, in both directions and diagonally; 1 at 128 px.

    Returns:
        (B,) in [0, 1]; 1 where neither has an edge, 0 where one alone has none.

    Raises:
        ContextDiffusionError: the shapes differ.
    """
    if found.shape != wanted.shape or found.ndim != 3:
        raise ContextDiffusionError(
            f"edges of shapes {tuple(found.shape)} and {tuple(wanted.shape)}: two equal batches are needed"
        )
    hits_found = (found & _grow(wanted, tolerance)).flatten(1).sum(1).double()
    hits_wanted = (wanted & _grow(found, tolerance)).flatten(1).sum(1).double()
    n_found, n_wanted = found.flatten(1).sum(1), wanted.flatten(1).sum(1)
    precision = hits_found / n_found.clamp_min(1)
    recall = hits_wanted / n_wanted.clamp_min(1)
    f1 = 2 * precision * recall / (precision + recall).clamp_min(1e-12)
    return torch.where((n_found == 0) & (n_wanted == 0), torch.ones_like(f1), f1)


def _grow(mask: Tensor, radius: int) -> Tensor:
    grown = functional.max_pool2d(mask[:, None].float(), 2 * radius + 1, stride=1, padding=radius)
    return grown[:, 0] > 0
