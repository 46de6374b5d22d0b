"""A data set of styles in memory, emoji, icons or one's own: images of every style, captions, groups and the split."""

from __future__ import annotations

import hashlib
import json
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..errors import ContextDiffusionError
from ..files import write_atomically
from .captions import dominant_colors, emoji_caption
from .index import read_index
from .sources.emoji_styles import SAME_LAYOUT


class EmojiLibrary:
    """What `context-diffusion data emoji`, `data icons` or `data folder` wrote, ready for sampling episodes.

    Pixels are decoded once into `cache/STYLE.npy` beside the images and memory-mapped from there, so that several
    processes share them.

    Attributes:
        folder: the data set's folder.
        size: side of the images in pixels.
        emoji: key -> {name, group, subgroup, keywords, heldout}.
        keys: style -> its keys, in the order of its images.
        images: style -> uint8 (n, size, size, 3), RGB over white.
        backgrounds: style -> uint8 (n, size, size), 255 where the white of the background shows.

    Raises:
        ContextDiffusionError: the folder holds no finished data set.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        index = read_index(self.folder)
        self.size: int = index["size"]
        self.emoji: dict[str, dict] = index["emoji"]
        self.style_info: dict[str, dict] = index["styles"]
        self.keys: dict[str, list[str]] = {}
        self.images: dict[str, np.ndarray] = {}
        self.backgrounds: dict[str, np.ndarray] = {}
        self._rows: dict[str, dict[str, int]] = {}
        for style in self.style_info:
            self._load_style(style)

    def __reduce__(self) -> tuple:
        # Another process opens the files itself: no pixels are sent.
        return type(self), (self.folder,)

    @cached_property
    def digest(self) -> str:
        """A short name for the index: which emoji in which styles, and what is held out."""
        index = {"size": self.size, "emoji": self.emoji, "styles": self.style_info}
        return hashlib.sha256(json.dumps(index, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def styles(self) -> list[str]:
        return list(self.style_info)

    @property
    def train_styles(self) -> list[str]:
        return [style for style, info in self.style_info.items() if not info["heldout"]]

    @property
    def heldout_styles(self) -> list[str]:
        return [style for style, info in self.style_info.items() if info["heldout"]]

    def is_heldout(self, key: str) -> bool:
        """Whether the emoji's content is held out, in every style."""
        return self.emoji[key]["heldout"]

    def group(self, key: str) -> str:
        return self.emoji[key]["group"]

    def subgroup(self, key: str) -> str:
        return self.emoji[key]["subgroup"]

    def has(self, style: str, key: str) -> bool:
        return key in self._rows[style]

    def row(self, style: str, key: str) -> int:
        """Where the emoji stands among the style's images."""
        return self._rows[style][key]

    def image(self, style: str, key: str) -> Tensor:
        """One image, (3, size, size) in [0, 1]."""
        return self.batch(style, [key])[0]

    def batch(self, style: str, keys: list[str]) -> Tensor:
        """Images of one style, (B, 3, size, size) in [0, 1]."""
        pixels = self.images[style][[self._rows[style][key] for key in keys]]
        return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255

    def background(self, style: str, keys: list[str]) -> Tensor:
        """Where the background shows, (B, 1, size, size) in [0, 1]."""
        masks = self.backgrounds[style][[self._rows[style][key] for key in keys]]
        return torch.from_numpy(masks)[:, None].float() / 255

    def caption(self, style: str, key: str, rng: np.random.Generator | None = None) -> str:
        """The emoji in words: name, keywords, group, style and dominant colors; a random part of them with `rng`."""
        return emoji_caption(self.entry(style, key), self.style_info[style]["words"], self.colors(style, key), rng)

    def entry(self, style: str, key: str) -> dict:
        """The emoji's entry; its name is the style's own caption of it where there is one."""
        caption = self.style_info[style].get("captions", {}).get(key)
        return {**self.emoji[key], "name": caption} if caption else self.emoji[key]

    def colors(self, style: str, key: str) -> list[str]:
        """Names of the image's dominant colors, the largest area first."""
        row = self._rows[style][key]
        return dominant_colors(self.images[style][row], self.backgrounds[style][row])

    def draw_style(self, rng: np.random.Generator) -> str:
        """A train style; styles of one icon set have the chance of one style between them."""
        sets: dict[str, list[str]] = {}
        for style in self.train_styles:
            sets.setdefault(self.style_info[style].get("set", style), []).append(style)
        styles = sets[str(rng.choice(list(sets)))]
        return styles[0] if len(styles) == 1 else str(rng.choice(styles))

    def same_layout(self, style: str) -> list[str]:
        """The styles that draw the same pictures in the same layout: of an icon set the other variants."""
        if style in SAME_LAYOUT:
            return [other for other in SAME_LAYOUT[style] if other in self.style_info]
        own = self.style_info[style].get("set")
        return [other for other, info in self.style_info.items() if own and info.get("set") == own and other != style]

    @cached_property
    def train_keys(self) -> dict[str, list[str]]:
        """Style -> the keys that training may see."""
        return {style: [key for key in self.keys[style] if not self.is_heldout(key)] for style in self.train_styles}

    @cached_property
    def heldout_keys(self) -> dict[str, list[str]]:
        """Style -> the keys that training never sees."""
        return {style: [key for key in self.keys[style] if self.is_heldout(key)] for style in self.styles}

    def _load_style(self, style: str) -> None:
        files = sorted((self.folder / "images" / style).glob("*.png"))
        keys = [path.stem for path in files]
        if not keys:
            raise ContextDiffusionError(f"{self.folder} has no images of {style}: run `context-diffusion data emoji`")
        cache = self.folder / "cache"
        images, masks = cache / f"{style}.npy", cache / f"{style}.background.npy"
        if not masks.exists() or np.load(images, mmap_mode="r").shape[:2] != (len(keys), self.size):
            cache.mkdir(exist_ok=True)
            pixels = np.stack([np.asarray(Image.open(path).convert("RGB")) for path in files])
            _save_array(images, pixels)
            _save_array(masks, np.stack([background_mask(image) for image in pixels]))
        self.keys[style] = keys
        self._rows[style] = {key: row for row, key in enumerate(keys)}
        self.images[style] = np.load(images, mmap_mode="r")
        self.backgrounds[style] = np.load(masks, mmap_mode="r")


def background_mask(image: np.ndarray) -> np.ndarray:
    """Where the white ground of an image shows: near-white pixels joined to the border, edges in part.

    Args:
        image: uint8 (H, W, 3) over white.

    Returns:
        uint8 (H, W): 255 in the background, 0 in the drawing, between them on antialiased edges.
    """
    from skimage.measure import label
    from skimage.morphology import dilation

    whiteness = image.min(axis=-1)
    near_white = np.pad(whiteness >= 250, 1, constant_values=True)
    labels = label(near_white, connectivity=1)
    background = (labels == labels[0, 0])[1:-1, 1:-1]
    ring = dilation(background, np.ones((3, 3))) & ~background
    return np.where(background, 255, np.where(ring, whiteness, 0)).astype(np.uint8)


def _save_array(path: Path, array: np.ndarray) -> None:
    # The processes of a run may all find the cache missing: each writes a file of its own, the last one stays.
    with write_atomically(path) as scratch, scratch.open("wb") as file:
        np.save(file, array)
