"""Whether colors are coherent and the right ones, on squares whose answer is known."""

import numpy as np
import pytest
import torch

from context_diffusion.evaluation.color import color_deviation, color_regions, palette, palette_distance

from .test_edges import square


def test_color_deviation_of_a_known_spread():
    truth = square(size=60, inset=15)
    regions = color_regions(truth)
    assert len(regions.image) == 1
    assert (regions.labels == 1).sum() == 26 * 26  # 30 px a side less 2 px all around
    sums, counts = color_deviation(truth, regions)
    assert counts.tolist() == [1] and sums.item() == pytest.approx(0, abs=1e-7)
    checker = truth.clone()
    board = (torch.arange(60)[:, None] + torch.arange(60)) % 2 * 2.0 - 1
    checker[0, 0] += 0.03 * board  # one channel of three deviates by .03
    checker[0, :, :10] = 0.0  # outside of the region: of no account
    sums, _ = color_deviation(checker, regions)
    assert sums.item() == pytest.approx(0.03 / np.sqrt(3), rel=1e-5)


def test_a_wrong_but_even_color_does_not_deviate():
    regions = color_regions(square())
    assert color_deviation(square(color=(0.1, 0.9, 0.4)), regions)[0].item() == pytest.approx(0, abs=1e-7)


def test_regions_keep_to_their_images_and_colors():
    two = square(size=60, inset=15)
    two[0, :, 15:45, 30:45] = torch.tensor([0.0, 0.0, 1.0]).view(3, 1, 1)
    truth = torch.cat([square(size=60, inset=15), torch.ones(1, 3, 60, 60), two])
    regions = color_regions(truth)
    assert regions.image.tolist() == [0, 2, 2]
    assert color_deviation(truth, regions)[1].tolist() == [1, 0, 2]


def test_palette_distance():
    red, blue = square((1.0, 0.0, 0.0)), square((0.0, 0.0, 1.0))
    mask = (red < 1).any(1)
    assert palette(red).sum().item() == pytest.approx(1)
    assert palette_distance(red, red.flip(2)).item() == pytest.approx(0, abs=1e-6)
    assert palette_distance(red, blue).item() == pytest.approx(20 * 20 / 40**2, rel=1e-5)
    assert palette_distance(red, blue, mask).item() == pytest.approx(1, rel=1e-5)
    third = square((2 / 3, 1 / 3, 0.0))
    half = square((0.5, 1 / 3, 0.0))  # half way between two nodes of the cube: half in common with either
    assert palette_distance(third, half, mask).item() == pytest.approx(0.5, rel=1e-4)
