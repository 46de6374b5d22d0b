"""Captions: names, keywords, groups, styles and dominant colors in words."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

# Names that people use for icon colors, with a typical sRGB value each.
COLOR_NAMES = {
    "red": (220, 45, 45),
    "orange": (245, 140, 40),
    "yellow": (252, 205, 60),
    "green": (75, 160, 70),
    "light green": (160, 215, 110),
    "teal": (60, 165, 165),
    "light blue": (130, 200, 240),
    "blue": (50, 115, 210),
    "dark blue": (35, 55, 110),
    "purple": (135, 80, 175),
    "pink": (245, 150, 180),
    "magenta": (215, 50, 130),
    "brown": (125, 80, 55),
    "tan": (225, 185, 140),
    "white": (250, 250, 250),
    "light grey": (205, 210, 215),
    "grey": (135, 140, 145),
    "dark grey": (70, 72, 78),
    "black": (18, 18, 20),
}
# How a transformed picture's style is called in captions.
FAMILY_WORDS = {
    "palette": "recolored",
    "duotone": "duotone",
    "hue": "shifted hues",
    "invert": "negative",
    "posterize": "posterized",
    "line_art": "line art",
    "outline": "heavy outline",
    "halftone": "halftone print",
    "poster": "flat poster colors",
    "curves": "faded film",
    "ramp": "gradient light",
    "silhouette": "silhouette",
    "weight": "bold lines",
    "stamp": "two-ink stamp",
    "soft": "soft focus",
    "relief": "paper relief",
    "mosaic": "pixel mosaic",
    "background": "colored background",
    "fade": "gradient background",
    "tile": "on a tile",
    "shadow": "drop shadow",
    "sticker": "sticker",
    "tint": "tinted",
}

# How a query map is called in captions, in the reverse task.
MAP_WORDS = {
    "softedge": "soft edge map",
    "segmentation": "segmentation map",
    "depth": "depth map",
    "canny": "canny edge map",
    "normal": "normal map",
}

_NAMES = list(COLOR_NAMES)
_VALUES = np.array(list(COLOR_NAMES.values()), dtype=np.float32)


def words_of(name: str) -> list[str]:
    """The words of a name in lower case, without numbers: `health-care-2` -> health, care."""
    return re.findall(r"[^\W\d_]+", name.lower())


def nearest_color_names(pixels: np.ndarray) -> np.ndarray:
    """Index into COLOR_NAMES of the nearest name for each pixel.

    Args:
        pixels: (n, 3), 0 to 255.

    Returns:
        (n,) integers. Distance is Euclidean in sRGB with the eye's rough channel weights.
    """
    weights = np.array([0.55, 0.75, 0.36], dtype=np.float32)
    difference = (pixels[:, None].astype(np.float32) - _VALUES[None]) * weights
    return (difference**2).sum(-1).argmin(-1)


def dominant_colors(image: np.ndarray, background: np.ndarray, most: int = 3, share: float = 0.12) -> list[str]:
    """Names of the colors that cover the drawing, the largest first.

    Args:
        image: uint8 (H, W, 3).
        background: uint8 (H, W), 255 where the ground shows.
        most: how many names at the most.
        share: part of the drawing that a color must cover to be named.
    """
    pixels = image[::2, ::2][background[::2, ::2] < 128]
    if len(pixels) == 0:
        return []
    counts = np.bincount(nearest_color_names(pixels), minlength=len(_NAMES)) / len(pixels)
    order = np.argsort(-counts, kind="stable")[:most]
    return [_NAMES[index] for index in order if counts[index] >= share] or [_NAMES[order[0]]]


def emoji_caption(entry: dict, style_words: str, colors: list[str], rng: np.random.Generator | None = None) -> str:
    """One caption of an emoji.

    Args:
        entry: name, group, subgroup and keywords of the emoji.
        style_words: how the style is called; empty for none.
        colors: dominant color names.
        rng: draws which parts are said and which keywords; None says name, group, style and colors.

    Returns:
        Parts joined by commas, the name first.
    """
    parts = [entry["name"]]
    if rng is None:
        parts += [entry["subgroup"], style_words, " and ".join(colors)]
        return ", ".join(filter(None, parts))
    keywords = entry["keywords"]
    if keywords and rng.random() < 0.15:
        # People type keywords as often as names.
        parts = [str(rng.choice(keywords))]
    if keywords and rng.random() < 0.5:
        parts += [
            str(word) for word in rng.choice(keywords, size=min(len(keywords), int(rng.integers(1, 4))), replace=False)
        ]
    if rng.random() < 0.3:
        parts.append(entry["subgroup"] if rng.random() < 0.7 else entry["group"])
    if style_words and rng.random() < 0.6:
        parts.append(style_words)
    if colors and rng.random() < 0.6:
        parts.append(" and ".join(colors[: int(rng.integers(1, len(colors) + 1))]))
    return ", ".join(filter(None, parts))


def transformed_caption(entry: dict, families: tuple[str, ...], image: Tensor, rng: np.random.Generator) -> str:
    """The caption of an emoji in a transformed style: its colors are those of the whole picture, ground included.

    Args:
        entry: as in `emoji_caption`.
        families: of the style transform.
        image: the picture, (3, H, W) in [0, 1].
        rng: as in `emoji_caption`.
    """
    pixels = (image.permute(1, 2, 0) * 255).byte().numpy()
    colors = dominant_colors(pixels, np.zeros(pixels.shape[:2], np.uint8))
    words = " ".join(FAMILY_WORDS[name] for name in families if name in FAMILY_WORDS)
    return emoji_caption(entry, words, colors, rng)
