"""What the families of style transforms have in common: their type, colors, edges and screens."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

LUMA = (0.299, 0.587, 0.114)

# Images (B, 3, H, W) in [0, 1] and their background (B, 1, H, W), 1 where the ground shows -> images.
Step = Callable[[Tensor, Tensor], Tensor]


def luma(images: Tensor) -> Tensor:
    """(B, 3, H, W) -> (B, 1, H, W), the perceived lightness."""
    return (images * images.new_tensor(LUMA).view(3, 1, 1)).sum(1, keepdim=True)


def random_color(rng: np.random.Generator, low: float = 0.0, high: float = 1.0) -> Tensor:
    """A color (3, 1, 1) whose brightness lies between `low` and `high`, saturated more often than grey."""
    import colorsys

    hue, saturation = rng.random(), np.sqrt(rng.random())
    color = colorsys.hsv_to_rgb(hue, saturation, low + (high - low) * rng.random())
    return torch.tensor(color, dtype=torch.float32).view(3, 1, 1)


def differences(images: Tensor) -> tuple[Tensor, Tensor]:
    """Each pixel's right neighbour less its left one, and its lower less its upper one, both (B, C, H, W)."""
    padded = F.pad(images, (1, 1, 1, 1), mode="replicate")
    across = padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]
    down = padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]
    return across, down


def edges(images: Tensor, width: int) -> Tensor:
    """Strength of color edges, (B, 1, H, W) in [0, 1]; `width` in pixels thickens them."""
    across, down = differences(images)
    strength = (across.abs() + down.abs()).amax(1, keepdim=True)
    if width > 1:
        strength = F.max_pool2d(strength, 2 * (width // 2) + 1, 1, width // 2)
    return (strength * 2.2).clamp(0, 1)


def screen(images: Tensor, pitch: float, angle: float, dots: bool) -> Tensor:
    """A printing screen in [0, 1]: dots or stripes of a pitch in pixels at 128 px, turned by an angle."""
    height, width = images.shape[-2:]
    pitch = pitch * width / 128
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    u = (x * np.cos(angle) + y * np.sin(angle)) * (2 * np.pi / pitch)
    v = (y * np.cos(angle) - x * np.sin(angle)) * (2 * np.pi / pitch)
    wave = (torch.cos(u) + torch.cos(v)) / 4 + 0.5 if dots else torch.cos(u) / 2 + 0.5
    return wave.to(images)


def places(images: Tensor) -> tuple[Tensor, Tensor]:
    """x (1, W) and y (H, 1) of every pixel, from -1/2 to 1/2."""
    height, width = images.shape[-2:]
    x = (torch.arange(width) + 0.5) / width - 0.5
    y = (torch.arange(height) + 0.5) / height - 0.5
    return x.to(images)[None], y.to(images)[:, None]


def slope(images: Tensor, angle: float) -> Tensor:
    """(H, W) from 0 to 1 across the picture, in the direction of an angle."""
    x, y = places(images)
    along = x * np.cos(angle) + y * np.sin(angle)
    return along / (abs(np.cos(angle)) + abs(np.sin(angle))) + 0.5
