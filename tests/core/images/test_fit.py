"""Fitting images into a size, and colors by name."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from context_diffusion import ContextDiffusionError
from context_diffusion.images import (
    fit_image,
    parse_color,
)

from ..tiny_images import as_hwc, random_pixels


def test_crop_takes_the_middle() -> None:
    image = torch.zeros(3, 8, 16)
    image[:, :, 4:12] = 1
    assert torch.equal(fit_image(image, 8, "crop"), torch.ones(3, 8, 8))


def test_pad_fills_with_the_background() -> None:
    fitted = fit_image(torch.zeros(3, 8, 16), 16, "pad", background=(1.0, 0.5, 0.25))
    assert torch.equal(fitted[:, 4:12], torch.zeros(3, 8, 16))
    border = torch.tensor([1.0, 0.5, 0.25]).view(3, 1, 1).expand(3, 4, 16)
    assert torch.equal(fitted[:, :4], border) and torch.equal(fitted[:, 12:], border)


def test_stretch_agrees_with_pil() -> None:
    pixels = random_pixels(40, 20)
    expected = np.asarray(Image.fromarray(pixels).resize((16, 12), Image.Resampling.BICUBIC)) / 255
    fitted = fit_image(torch.from_numpy(pixels).permute(2, 0, 1) / 255, (12, 16), "stretch")
    assert np.abs(as_hwc(fitted) - expected).max() < 2.5 / 255  # PIL rounds after each of two passes


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (37, 11), (64, 64)])
def test_every_fit_gives_the_size_and_range(fit: str, shape: tuple[int, int]) -> None:
    batch = torch.rand(2, 3, *shape, generator=torch.Generator().manual_seed(0))
    fitted = fit_image(batch, (24, 32), fit)
    assert fitted.shape == (2, 3, 24, 32)
    assert fitted.min() >= 0 and fitted.max() <= 1


@pytest.mark.parametrize("size", [0, -4, 3.5, (4,), (4, 0), "128", True, (1, 2, 3)])
def test_bad_sizes(size: object) -> None:
    with pytest.raises(ContextDiffusionError, match="size"):
        fit_image(torch.zeros(3, 4, 4), size)


def test_colors() -> None:
    assert parse_color("#ff0080").tolist() == pytest.approx([1, 0, 128 / 255])
    for bad in ("no such colour", (1, 2, 3), (0.5, 0.5), 7, (0, float("nan"), 0)):
        with pytest.raises(ContextDiffusionError, match="colour"):
            parse_color(bad)
