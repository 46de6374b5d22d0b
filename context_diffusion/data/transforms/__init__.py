"""Style transforms: random ways of redrawing a whole set of images alike, applied to target and context together.

They teach reading a style from its context images: with seven real styles alone a style becomes a class label.
Whole families are held out (`HELDOUT_FAMILIES`), so that a measurement meets kinds of style never trained on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from . import ground, recolor, redraw
from .common import Step, luma

__all__ = ["FAMILIES", "GROUNDS", "HELDOUT_FAMILIES", "TRAIN_FAMILIES", "StyleTransform", "luma", "sample_transform"]


@dataclass(frozen=True)
class StyleTransform:
    """One drawn style transform: a chain of steps whose parameters are fixed.

    Attributes:
        families: names of the steps, in the order in which they are applied.
        steps: functions (images (B, 3, H, W), background (B, 1, H, W)) -> images.
    """

    families: tuple[str, ...]
    steps: tuple[Step, ...]

    def __call__(self, images: Tensor, background: Tensor) -> Tensor:
        """Redraw images.

        Args:
            images: (B, 3, H, W) in [0, 1], over white.
            background: (B, 1, H, W) in [0, 1], 1 where the ground shows.

        Returns:
            (B, 3, H, W) in [0, 1].
        """
        for step in self.steps:
            images = step(images, background).clamp(0, 1)
        return images


def sample_transform(rng: np.random.Generator, families: tuple[str, ...] | None = None) -> StyleTransform:
    """Draw a style transform of one to three steps: what is drawn, and at times how again, and on what ground.

    Args:
        rng: source of the choice and of every parameter.
        families: names to choose from; the training families when None.
    """
    families = families or TRAIN_FAMILIES
    grounds = [name for name in families if name in GROUNDS]
    redraw = [name for name in families if name not in (*GROUNDS, "tint")]
    chosen = [str(rng.choice(redraw))]
    # The held-out families name no ground: theirs are single steps, so that each is measured by itself.
    if grounds:
        if rng.random() < 0.2:
            chosen.append(str(rng.choice(redraw)))
        if rng.random() < 0.45:
            plain = "background" in grounds and rng.random() < 0.4
            chosen.append("background" if plain else str(rng.choice(grounds)))
        elif "tint" in families and rng.random() < 0.2:
            chosen.append("tint")
    return StyleTransform(tuple(chosen), tuple(FAMILIES[name](rng) for name in chosen))


FAMILIES: dict[str, Callable[[np.random.Generator], Step]] = {
    "palette": recolor.palette,
    "duotone": recolor.duotone,
    "hue": recolor.hue,
    "invert": recolor.invert,
    "posterize": recolor.posterize,
    "poster": recolor.poster,
    "curves": recolor.curves,
    "ramp": recolor.ramp,
    "silhouette": recolor.silhouette,
    "tint": recolor.tint,
    "line_art": redraw.line_art,
    "outline": redraw.outline,
    "weight": redraw.weight,
    "stamp": redraw.stamp,
    "halftone": redraw.halftone,
    "soft": redraw.soft,
    "relief": redraw.relief,
    "mosaic": redraw.mosaic,
    "background": ground.background,
    "fade": ground.fade,
    "tile": ground.tile,
    "shadow": ground.shadow,
    "sticker": ground.sticker,
    "channel_mix": recolor.channel_mix,
    "solarize": recolor.solarize,
    "stripes": redraw.stripes,
}
# Applied last: what the drawing stands on.
GROUNDS = ("background", "fade", "tile", "shadow", "sticker")
HELDOUT_FAMILIES = ("channel_mix", "solarize", "stripes")
TRAIN_FAMILIES = tuple(name for name in FAMILIES if name not in HELDOUT_FAMILIES)
