"""Families that change lines, grain and relief of a drawing."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .common import Step, differences, edges, luma, random_color, screen


def line_art(rng: np.random.Generator) -> Step:
    """Only the lines, in one color on another."""
    width = int(rng.choice([1, 3]))
    paper = random_color(rng, 0.75, 1.0) if rng.random() < 0.6 else torch.ones(3, 1, 1)
    ink = random_color(rng, 0.0, 0.5)
    if rng.random() < 0.3:
        paper, ink = ink, paper
    return lambda images, background: paper + (ink - paper) * edges(images, width)


def outline(rng: np.random.Generator) -> Step:
    """Colored fills get a heavy line around every area."""
    width = int(rng.choice([1, 3, 5]))
    ink = random_color(rng, 0.0, 0.5) if rng.random() < 0.7 else random_color(rng)
    wash = rng.uniform(0.0, 0.5)

    def step(images: Tensor, background: Tensor) -> Tensor:
        pale = images + (1 - images) * wash
        return pale + (ink - pale) * edges(images, width)

    return step


def stamp(rng: np.random.Generator) -> Step:
    """Two inks at most: what is darker than a threshold is printed, and often every contour."""
    paper, ink = torch.ones(3, 1, 1), torch.zeros(3, 1, 1)
    if rng.random() < 0.5:
        paper, ink = random_color(rng, 0.7, 1.0), random_color(rng, 0.0, 0.55)
    if rng.random() < 0.2:
        paper, ink = ink, paper
    threshold, width = rng.uniform(0.35, 0.8), int(rng.choice([0, 1, 3]))

    def step(images: Tensor, background: Tensor) -> Tensor:
        printed = torch.sigmoid((threshold - luma(images)) * 25)
        if width:
            printed = torch.maximum(printed, edges(images, width))
        return paper + (ink - paper) * printed

    return step


def halftone(rng: np.random.Generator) -> Step:
    """Dots of one ink on paper, larger where the image is darker."""
    pitch, angle = rng.uniform(5, 9), rng.uniform(0, np.pi / 2)
    paper, ink = random_color(rng, 0.8, 1.0), random_color(rng, 0.0, 0.6)
    return _print_through_screen(paper, ink, pitch, angle, dots=True, sharpness=12)


def weight(rng: np.random.Generator) -> Step:
    """Dark lines grow heavier, or light areas eat into them."""
    width, bolder, share = int(rng.choice([3, 5])), rng.random() < 0.6, rng.uniform(0.6, 1.0)

    def step(images: Tensor, background: Tensor) -> Tensor:
        signed = -images if bolder else images
        grown = F.max_pool2d(signed, width, 1, width // 2)
        return images + share * ((-grown if bolder else grown) - images)

    return step


def soft(rng: np.random.Generator) -> Step:
    """Out of focus, washed out a little."""
    sigma, wash = rng.uniform(1.2, 2.6), rng.uniform(0.0, 0.4)

    def step(images: Tensor, background: Tensor) -> Tensor:
        from scipy.ndimage import gaussian_filter

        scaled = sigma * images.shape[-1] / 128
        blurred = torch.from_numpy(gaussian_filter(images.numpy(), (0, 0, scaled, scaled), mode="nearest"))
        return blurred + (1 - blurred) * wash

    return step


def relief(rng: np.random.Generator) -> Step:
    """Pressed into colored paper: light from one side, no fills."""
    paper, angle = random_color(rng, 0.35, 0.85), rng.uniform(0, 2 * np.pi)
    depth, fill = rng.uniform(0.8, 1.8), rng.uniform(0.0, 0.35)

    def step(images: Tensor, background: Tensor) -> Tensor:
        across, down = differences(luma(images))
        return paper + fill * (images - paper) + depth * (np.cos(angle) * across + np.sin(angle) * down)

    return step


def mosaic(rng: np.random.Generator) -> Step:
    """Square tiles of one color each, with some contrast."""
    side, gain = int(rng.choice([4, 8])), rng.uniform(1.05, 1.4)

    def step(images: Tensor, background: Tensor) -> Tensor:
        block = max(2, side * images.shape[-1] // 128)
        tiles = F.avg_pool2d(images, block, ceil_mode=True)
        large = F.interpolate(tiles, scale_factor=block, mode="nearest")
        return (large[..., : images.shape[-2], : images.shape[-1]] - 0.5) * gain + 0.5

    return step


def stripes(rng: np.random.Generator) -> Step:
    """Held out: an engraving, stripes of one ink whose width follows the darkness."""
    pitch, angle = rng.uniform(5, 8), rng.uniform(0, np.pi)
    paper, ink = random_color(rng, 0.7, 1.0), random_color(rng, 0.0, 0.6)
    return _print_through_screen(paper, ink, pitch, angle, dots=False, sharpness=10)


def _print_through_screen(paper: Tensor, ink: Tensor, pitch: float, angle: float, dots: bool, sharpness: float) -> Step:
    """Ink where the image is darker than the screen, see `common.screen`."""

    def step(images: Tensor, background: Tensor) -> Tensor:
        pattern = screen(images, pitch, angle, dots)
        printed = torch.sigmoid(((1 - luma(images)) * 1.1 - pattern) * sharpness)
        return paper + (ink - paper) * printed

    return step
