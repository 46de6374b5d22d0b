"""Families that change what a drawing stands on."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .common import Step, places, random_color, slope


def background(rng: np.random.Generator) -> Step:
    """The white ground becomes another color."""
    color = random_color(rng)
    return lambda images, background: images + background * (color - 1)


def fade(rng: np.random.Generator) -> Step:
    """The ground goes from one color to another."""
    first, second, angle = random_color(rng), random_color(rng), rng.uniform(0, 2 * np.pi)

    def step(images: Tensor, background: Tensor) -> Tensor:
        return images + background * (first + (second - first) * slope(images, angle) - images)

    return step


def tile(rng: np.random.Generator) -> Step:
    """A disc or a rounded square behind the drawing, on paper of another color."""
    color, paper = random_color(rng), torch.ones(3, 1, 1) if rng.random() < 0.6 else random_color(rng, 0.7, 1.0)
    reach, power = rng.uniform(0.42, 0.5), float(rng.choice([2, 5, 12]))

    def step(images: Tensor, background: Tensor) -> Tensor:
        x, y = places(images)
        # A superellipse: power 2 is a disc, more is squarer.
        radius = (x.abs() ** power + y.abs() ** power) ** (1 / power)
        inside = ((reach - radius) * images.shape[-1] / 1.5 + 0.5).clamp(0, 1)
        return images + background * (paper + (color - paper) * inside - images)

    return step


def shadow(rng: np.random.Generator) -> Step:
    """The drawing's own shape once more beneath it, moved and in one color."""
    color, ground = random_color(rng, 0.0, 0.8), torch.ones(3, 1, 1) if rng.random() < 0.5 else random_color(rng)
    angle, far = rng.uniform(0, 2 * np.pi), rng.uniform(4, 9)

    def step(images: Tensor, background: Tensor) -> Tensor:
        scaled = far * images.shape[-1] / 128
        across, down = (round(scaled * float(turn(angle))) for turn in (np.cos, np.sin))
        height, width = background.shape[-2:]
        margin = max(abs(across), abs(down))
        padded = F.pad(1 - background, (margin,) * 4)
        moved = padded[..., margin - down : margin - down + height, margin - across : margin - across + width]
        return images + background * (ground + (color - ground) * moved - images)

    return step


def sticker(rng: np.random.Generator) -> Step:
    """A band around the drawing, as of a cut-out sticker, on a colored ground."""
    band = torch.ones(3, 1, 1) if rng.random() < 0.6 else random_color(rng)
    ground, width = random_color(rng, 0.0, 0.95), int(rng.choice([5, 7, 9]))

    def step(images: Tensor, background: Tensor) -> Tensor:
        size = max(3, 2 * (width * images.shape[-1] // 256) + 1)
        near = F.max_pool2d(1 - background, size, 1, size // 2)
        return images + background * (ground + (band - ground) * near - images)

    return step
