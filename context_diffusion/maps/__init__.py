"""Maps: what a query image is reduced to before the layout encoder sees it.

All take (B, 3, H, W) in [0, 1] and return the same shape and range, are deterministic, and treat every
image of a batch on its own. Edges are white lines on black. None of them needs a trained network; where
that makes a map a stand-in for the one of the paper, its docstring says so.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ..errors import ContextDiffusionError
from ..images.check import check_images
from .depth import depth, normal
from .edges import canny, scribble, softedge
from .segmentation import segmentation

__all__ = ["MAPS", "canny", "depth", "make_map", "none", "normal", "scribble", "segmentation", "softedge"]


def none(images: Tensor) -> Tensor:
    """The image itself: for queries that are maps already."""
    return images


# By the names of `choices.MAPS`.
MAPS: dict[str, Callable[[Tensor], Tensor]] = {
    each.__name__: each for each in (none, canny, softedge, segmentation, depth, normal, scribble)
}


def make_map(images: Tensor, name: str) -> Tensor:
    """Make one of `MAPS` from images.

    Args:
        images: (3, H, W) or (B, 3, H, W) in [0, 1].
        name: a key of `MAPS`.

    Returns:
        (B, 3, H, W) in [0, 1], dtype and device of the images.

    Raises:
        ContextDiffusionError: an unknown name, or images that `check_images` refuses.
    """
    if name not in MAPS:
        raise ContextDiffusionError(f"map is {name!r}; choose one of {', '.join(MAPS)}")
    return MAPS[name](check_images(images, "images for a map"))
