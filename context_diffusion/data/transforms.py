"""Style transforms: random ways of redrawing a whole set of images alike, applied to target and context together.

They teach reading a style from its context images: with seven real styles alone a style becomes a class label.
Whole families are held out (`HELDOUT_FAMILIES`), so that a measurement meets kinds of style never trained on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

LUMA = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class StyleTransform:
    """One drawn style transform: a chain of steps whose parameters are fixed.

    Attributes:
        families: names of the steps, in the order in which they are applied.
        steps: functions (images (B, 3, H, W), background (B, 1, H, W)) -> images.
    """

    families: tuple[str, ...]
    steps: tuple[Callable[[Tensor, Tensor], Tensor], ...]

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
    """Draw a style transform of one or two steps.

    Args:
        rng: source of the choice and of every parameter.
        families: names to choose from; the training families when None.
    """
    families = families or TRAIN_FAMILIES
    redraw = [name for name in families if name not in ("background", "tint")]
    chosen = [str(rng.choice(redraw))]
    if "background" in families and rng.random() < 0.45:
        chosen.append("background")
    elif "tint" in families and rng.random() < 0.2:
        chosen.append("tint")
    if "invert" in chosen and "background" in chosen:
        chosen.remove("background")
    return StyleTransform(tuple(chosen), tuple(FAMILIES[name](rng) for name in chosen))


def luma(images: Tensor) -> Tensor:
    """(B, 3, H, W) -> (B, 1, H, W), the perceived lightness."""
    return (images * images.new_tensor(LUMA).view(3, 1, 1)).sum(1, keepdim=True)


def random_color(rng: np.random.Generator, low: float = 0.0, high: float = 1.0) -> Tensor:
    """A color (3, 1, 1) whose brightness lies between `low` and `high`, saturated more often than grey."""
    import colorsys

    hue, saturation = rng.random(), np.sqrt(rng.random())
    color = colorsys.hsv_to_rgb(hue, saturation, low + (high - low) * rng.random())
    return torch.tensor(color, dtype=torch.float32).view(3, 1, 1)


def _palette(rng: np.random.Generator) -> Callable:
    """Every color goes to a new one by a smooth random map: three to six anchor colors get random replacements."""
    count = int(rng.integers(3, 7))
    anchors = torch.tensor(rng.random((count, 3)), dtype=torch.float32)
    targets = torch.stack([random_color(rng).flatten() for _ in range(count)])
    keep_ground = rng.random() < 0.7

    def step(images: Tensor, background: Tensor) -> Tensor:
        distance = (images[:, None] - anchors.view(1, count, 3, 1, 1)).square().sum(2)
        weights = torch.softmax(-distance * 14, dim=1)
        mapped = torch.einsum("bkhw,kc->bchw", weights, targets)
        return mapped + (images - mapped) * background if keep_ground else mapped

    return step


def _duotone(rng: np.random.Generator) -> Callable:
    """Dark goes to one color, light to another."""
    dark, light = random_color(rng, 0.0, 0.55), random_color(rng, 0.6, 1.0)
    if rng.random() < 0.25:
        dark, light = light, dark
    return lambda images, background: dark + (light - dark) * luma(images)


def _hue(rng: np.random.Generator) -> Callable:
    """Hues turn around the grey axis; saturation scales."""
    angle = rng.uniform(0.6, 2 * np.pi - 0.6)
    saturation = rng.uniform(0.6, 1.5)
    cosine, sine = np.cos(angle), np.sin(angle)
    axis = np.ones((3, 3)) / 3
    cross = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / np.sqrt(3)
    matrix = axis + saturation * (cosine * (np.eye(3) - axis) + sine * cross)
    matrix = torch.tensor(matrix, dtype=torch.float32)
    return lambda images, background: torch.einsum("ij,bjhw->bihw", matrix, images)


def _invert(rng: np.random.Generator) -> Callable:
    """A photographic negative."""
    return lambda images, background: 1 - images


def _background(rng: np.random.Generator) -> Callable:
    """The white ground becomes another color."""
    color = random_color(rng)
    return lambda images, background: images + background * (color - 1)


def _tint(rng: np.random.Generator) -> Callable:
    """A colored light over everything."""
    color = random_color(rng, 0.7, 1.0)
    return lambda images, background: images * color


def _posterize(rng: np.random.Generator) -> Callable:
    """Few levels a channel, with contrast."""
    levels = int(rng.integers(2, 4))
    gain = rng.uniform(1.0, 1.4)

    def step(images: Tensor, background: Tensor) -> Tensor:
        stretched = ((images - 0.5) * gain + 0.5).clamp(0, 1)
        return torch.round(stretched * (levels - 1)) / (levels - 1)

    return step


def _edges(images: Tensor, width: int) -> Tensor:
    """Strength of color edges, (B, 1, H, W) in [0, 1]; `width` in pixels thickens them."""
    padded = F.pad(images, (1, 1, 1, 1), mode="replicate")
    across = (padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]).abs()
    down = (padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]).abs()
    edges = (across + down).amax(1, keepdim=True)
    if width > 1:
        edges = F.max_pool2d(edges, 2 * (width // 2) + 1, 1, width // 2)
    return (edges * 2.2).clamp(0, 1)


def _line_art(rng: np.random.Generator) -> Callable:
    """Only the lines, in one color on another."""
    width = int(rng.choice([1, 3]))
    paper = random_color(rng, 0.75, 1.0) if rng.random() < 0.6 else torch.ones(3, 1, 1)
    ink = random_color(rng, 0.0, 0.5)
    if rng.random() < 0.3:
        paper, ink = ink, paper
    return lambda images, background: paper + (ink - paper) * _edges(images, width)


def _outline(rng: np.random.Generator) -> Callable:
    """Colored fills get a heavy line around every area."""
    width = int(rng.choice([1, 3, 5]))
    ink = random_color(rng, 0.0, 0.5) if rng.random() < 0.7 else random_color(rng)
    wash = rng.uniform(0.0, 0.5)

    def step(images: Tensor, background: Tensor) -> Tensor:
        pale = images + (1 - images) * wash
        return pale + (ink - pale) * _edges(images, width)

    return step


def _halftone(rng: np.random.Generator) -> Callable:
    """Dots of one ink on paper, larger where the image is darker."""
    pitch, angle = rng.uniform(5, 9), rng.uniform(0, np.pi / 2)
    paper, ink = random_color(rng, 0.8, 1.0), random_color(rng, 0.0, 0.6)

    def step(images: Tensor, background: Tensor) -> Tensor:
        screen = _screen(images, pitch, angle, dots=True)
        ink_here = torch.sigmoid(((1 - luma(images)) * 1.1 - screen) * 12)
        return paper + (ink - paper) * ink_here

    return step


def _silhouette(rng: np.random.Generator) -> Callable:
    """One flat color, a little of the drawing left as shade."""
    color, shade = random_color(rng), rng.uniform(0.15, 0.5)

    def step(images: Tensor, background: Tensor) -> Tensor:
        inside = color * (1 - shade + shade * luma(images))
        return inside + (images - inside) * background

    return step


def _channel_mix(rng: np.random.Generator) -> Callable:
    """Held out: channels mixed by a random matrix whose rows add up to 1, so that white stays white."""
    matrix = rng.dirichlet((0.35, 0.35, 0.35), size=3)
    matrix = torch.tensor(matrix, dtype=torch.float32)
    color = random_color(rng)

    def step(images: Tensor, background: Tensor) -> Tensor:
        mixed = torch.einsum("ij,bjhw->bihw", matrix, images)
        return mixed + background * (color - 1)

    return step


def _solarize(rng: np.random.Generator) -> Callable:
    """Held out: values above a threshold are turned around, channel by channel, under a colored light."""
    threshold = torch.tensor(rng.uniform(0.3, 0.7, size=(3, 1, 1)), dtype=torch.float32)
    color = random_color(rng, 0.5, 1.0)
    return lambda images, background: torch.where(images > threshold, 1 - images, images) * 0.7 + 0.3 * color


def _stripes(rng: np.random.Generator) -> Callable:
    """Held out: an engraving, stripes of one ink whose width follows the darkness."""
    pitch, angle = rng.uniform(5, 8), rng.uniform(0, np.pi)
    paper, ink = random_color(rng, 0.7, 1.0), random_color(rng, 0.0, 0.6)

    def step(images: Tensor, background: Tensor) -> Tensor:
        screen = _screen(images, pitch, angle, dots=False)
        ink_here = torch.sigmoid(((1 - luma(images)) * 1.1 - screen) * 10)
        return paper + (ink - paper) * ink_here

    return step


def _screen(images: Tensor, pitch: float, angle: float, dots: bool) -> Tensor:
    """A printing screen in [0, 1]: dots or stripes of a pitch in pixels at 128 px, turned by an angle."""
    height, width = images.shape[-2:]
    pitch = pitch * width / 128
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    u = (x * np.cos(angle) + y * np.sin(angle)) * (2 * np.pi / pitch)
    v = (y * np.cos(angle) - x * np.sin(angle)) * (2 * np.pi / pitch)
    wave = (torch.cos(u) + torch.cos(v)) / 4 + 0.5 if dots else torch.cos(u) / 2 + 0.5
    return wave.to(images)


FAMILIES: dict[str, Callable[[np.random.Generator], Callable]] = {
    "palette": _palette,
    "duotone": _duotone,
    "hue": _hue,
    "invert": _invert,
    "posterize": _posterize,
    "line_art": _line_art,
    "outline": _outline,
    "halftone": _halftone,
    "silhouette": _silhouette,
    "background": _background,
    "tint": _tint,
    "channel_mix": _channel_mix,
    "solarize": _solarize,
    "stripes": _stripes,
}
HELDOUT_FAMILIES = ("channel_mix", "solarize", "stripes")
TRAIN_FAMILIES = tuple(name for name in FAMILIES if name not in HELDOUT_FAMILIES)
