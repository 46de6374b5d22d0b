"""Line maps: canny, soft edges and scribbles."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

# Blur before differentiating, in pixels: wide enough to swallow antialiasing and JPEG noise.
_SIGMA = 1.0
# A step of this contrast in one colour channel is drawn fully white in the soft-edge map.
_FULL_CONTRAST = 0.5
# Scribbles take every edge whose step is at least this share of `_FULL_CONTRAST`.
_SCRIBBLE_THRESHOLD = 0.35


def canny(images: Tensor) -> Tensor:
    """Canny edges: thin binary lines (kornia; hysteresis thresholds 0.1 and 0.2 on the luminance gradient).

    The detector that ControlNet's canny map uses as well. It sees luminance alone: a border between two
    colours of equal brightness stays invisible.

    Args:
        images: (B, 3, H, W) in [0, 1].

    Returns:
        (B, 3, H, W), every value 0 or 1, the three channels equal.
    """
    from kornia.filters import canny as kornia_canny

    height, width = images.shape[-2:]
    # Kornia's blur mirrors two pixels at each side, which a picture of fewer than three does not have.
    padded = F.pad(images.float(), (0, max(0, 3 - width), 0, max(0, 3 - height)), mode="replicate")
    with torch.no_grad():
        # One by one: on some CPUs a convolution adds up in another order in a batch, and thin lines hang on ties.
        edges = torch.cat([kornia_canny(image)[1] for image in padded.split(1)])
    edges = edges[..., :height, :width]
    return edges.clamp(0, 1).expand(-1, 3, -1, -1).to(images.dtype).contiguous()


def softedge(images: Tensor) -> Tensor:
    """Soft edges: gradient magnitude of the lightly blurred image, strongest colour channel at each pixel.

    A stand-in for the HED network's map of the paper: it has the same look (grey, smooth, brighter where
    contrast is higher), but knows nothing of objects, so that texture shows as strongly as contours. The
    scale is fixed (a step of 0.5 in one channel is white, half that step half as bright), not set by
    each image, so that maps of different images compare.

    Args:
        images: (B, 3, H, W) in [0, 1].

    Returns:
        (B, 3, H, W) in [0, 1], the three channels equal.
    """
    return _edge_strength(images, _SIGMA).expand(-1, 3, -1, -1).to(images.dtype).contiguous()


def scribble(images: Tensor) -> Tensor:
    """Thick binary strokes along the clear edges.

    A stand-in for lines drawn by hand: it is as coarse as those, but exact in position. Strokes grow
    with the picture, 4 to 6 pixels wide at 128.

    Args:
        images: (B, 3, H, W) in [0, 1].

    Returns:
        (B, 3, H, W), every value 0 or 1, the three channels equal.
    """
    scale = max(1.0, min(images.shape[-2:]) / 128)
    strokes = (_edge_strength(images, 1.5 * _SIGMA * scale) >= _SCRIBBLE_THRESHOLD).float()
    radius = round(scale)
    strokes = F.max_pool2d(strokes, 2 * radius + 1, stride=1, padding=radius)
    return strokes.expand(-1, 3, -1, -1).to(images.dtype).contiguous()


@torch.no_grad()
def _edge_strength(images: Tensor, sigma: float) -> Tensor:
    """Gradient magnitude (B, 1, H, W) after a blur of `sigma` pixels; a step of `_FULL_CONTRAST` gives 1."""
    radius = math.ceil(3 * sigma)
    weights = [math.exp(-0.5 * (offset / sigma) ** 2) for offset in range(radius + 1)]
    total = weights[0] + 2 * sum(weights[1:])
    weights = [weight / total for weight in weights]
    smooth = _blur(_blur(images.float(), weights, dim=-1), weights, dim=-2)
    # Central differences; pixels of the edge repeat outwards.
    padded = F.pad(smooth, (1, 1, 1, 1), mode="replicate")
    gradient_x = padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]
    gradient_y = padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]
    squared = gradient_x.square_().add_(gradient_y.square_()).amax(dim=1, keepdim=True)
    # The difference that a step of contrast 1 gives at either of the two pixels it lies between.
    step = weights[0] + weights[1]
    return squared.sqrt_().div_(step * _FULL_CONTRAST).clamp_(max=1)


def _blur(images: Tensor, weights: list[float], dim: int) -> Tensor:
    """Symmetric 1-D filter along height (-2) or width (-1); pixels of the edge repeat outwards.

    Sums of shifted views: on a CPU several times as fast as a convolution with one channel in and out.

    Args:
        images: (B, C, H, W).
        weights: the middle weight and those to one side of it.
        dim: -1 or -2.

    Returns:
        (B, C, H, W).
    """
    radius, size = len(weights) - 1, images.shape[dim]
    padding = (0, 0, radius, radius) if dim == -2 else (radius, radius, 0, 0)
    padded = F.pad(images, padding, mode="replicate")
    result = images * weights[0]
    for offset, weight in enumerate(weights[1:], start=1):
        result.add_(padded.narrow(dim, radius - offset, size), alpha=weight)
        result.add_(padded.narrow(dim, radius + offset, size), alpha=weight)
    return result
