"""Families that change the colors of a drawing and leave its shapes."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .common import Step, luma, random_color, slope


def palette(rng: np.random.Generator) -> Step:
    """Every color goes to a new one by a smooth random map: three to six anchor colors get random replacements."""
    return _replace_anchors(rng, int(rng.integers(3, 7)), sharpness=14, keep_ground=0.7)


def duotone(rng: np.random.Generator) -> Step:
    """Dark goes to one color, light to another."""
    dark, light = random_color(rng, 0.0, 0.55), random_color(rng, 0.6, 1.0)
    if rng.random() < 0.25:
        dark, light = light, dark
    return lambda images, background: dark + (light - dark) * luma(images)


def hue(rng: np.random.Generator) -> Step:
    """Hues turn around the grey axis; saturation scales."""
    angle = rng.uniform(0.6, 2 * np.pi - 0.6)
    saturation = rng.uniform(0.6, 1.5)
    cosine, sine = np.cos(angle), np.sin(angle)
    axis = np.ones((3, 3)) / 3
    cross = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / np.sqrt(3)
    matrix = axis + saturation * (cosine * (np.eye(3) - axis) + sine * cross)
    matrix = torch.tensor(matrix, dtype=torch.float32)
    return lambda images, background: torch.einsum("ij,bjhw->bihw", matrix, images)


def invert(rng: np.random.Generator) -> Step:
    """A photographic negative."""
    return lambda images, background: 1 - images


def tint(rng: np.random.Generator) -> Step:
    """A colored light over everything."""
    color = random_color(rng, 0.7, 1.0)
    return lambda images, background: images * color


def posterize(rng: np.random.Generator) -> Step:
    """Few levels a channel, with contrast."""
    levels = int(rng.integers(2, 4))
    gain = rng.uniform(1.0, 1.4)

    def step(images: Tensor, background: Tensor) -> Tensor:
        stretched = ((images - 0.5) * gain + 0.5).clamp(0, 1)
        return torch.round(stretched * (levels - 1)) / (levels - 1)

    return step


def silhouette(rng: np.random.Generator) -> Step:
    """One flat color, a little of the drawing left as shade."""
    color, shade = random_color(rng), rng.uniform(0.15, 0.5)

    def step(images: Tensor, background: Tensor) -> Tensor:
        inside = color * (1 - shade + shade * luma(images))
        return inside + (images - inside) * background

    return step


def poster(rng: np.random.Generator) -> Step:
    """Flat fills of a few unrelated colors: every color goes to that of its nearest anchor."""
    # Nearly hard: a trace of softness keeps the drawing's smooth contours.
    return _replace_anchors(rng, int(rng.integers(4, 9)), sharpness=90, keep_ground=0.6)


def curves(rng: np.random.Generator) -> Step:
    """A tone curve for each channel, as of faded or pushed film."""
    gamma = torch.tensor(np.exp(rng.uniform(-1.1, 1.1, size=(3, 1, 1))), dtype=torch.float32)
    low = torch.tensor(rng.uniform(0.0, 0.3, size=(3, 1, 1)), dtype=torch.float32)
    high = torch.tensor(rng.uniform(0.7, 1.0, size=(3, 1, 1)), dtype=torch.float32)
    return lambda images, background: low + (high - low) * images.clamp_min(1e-4) ** gamma


def ramp(rng: np.random.Generator) -> Step:
    """Fills under a light that goes from one color to another across the picture."""
    first, second = random_color(rng, 0.4, 1.0), random_color(rng, 0.4, 1.0)
    angle, everywhere = rng.uniform(0, 2 * np.pi), rng.random() < 0.3

    def step(images: Tensor, background: Tensor) -> Tensor:
        light = first + (second - first) * slope(images, angle)
        lit = images * light
        return lit if everywhere else lit + (images - lit) * background

    return step


def channel_mix(rng: np.random.Generator) -> Step:
    """Held out: channels mixed by a random matrix whose rows add up to 1, so that white stays white."""
    matrix = rng.dirichlet((0.35, 0.35, 0.35), size=3)
    matrix = torch.tensor(matrix, dtype=torch.float32)
    color = random_color(rng)

    def step(images: Tensor, background: Tensor) -> Tensor:
        mixed = torch.einsum("ij,bjhw->bihw", matrix, images)
        return mixed + background * (color - 1)

    return step


def solarize(rng: np.random.Generator) -> Step:
    """Held out: values above a threshold are turned around, channel by channel, under a colored light."""
    threshold = torch.tensor(rng.uniform(0.3, 0.7, size=(3, 1, 1)), dtype=torch.float32)
    color = random_color(rng, 0.5, 1.0)
    return lambda images, background: torch.where(images > threshold, 1 - images, images) * 0.7 + 0.3 * color


def _replace_anchors(rng: np.random.Generator, count: int, sharpness: float, keep_ground: float) -> Step:
    """Random anchor colors get random replacements, and every color a mixture of those of the anchors near it.

    Args:
        rng: source of the colors.
        count: anchors.
        sharpness: how much the nearest anchor outweighs the others.
        keep_ground: chance that the ground keeps its color.
    """
    anchors = torch.tensor(rng.random((count, 3)), dtype=torch.float32)
    targets = torch.stack([random_color(rng).flatten() for _ in range(count)])
    kept = rng.random() < keep_ground

    def step(images: Tensor, background: Tensor) -> Tensor:
        distance = (images[:, None] - anchors.view(1, count, 3, 1, 1)).square().sum(2)
        mapped = torch.einsum("bkhw,kc->bchw", torch.softmax(-distance * sharpness, dim=1), targets)
        return mapped + (images - mapped) * background if kept else mapped

    return step
