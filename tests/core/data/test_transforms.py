"""Style transforms: repeatable, the same for every image of a set, in range, with families kept apart."""

import numpy as np
import pytest
import torch

from context_diffusion.data.transforms import (
    FAMILIES,
    GROUNDS,
    HELDOUT_FAMILIES,
    TRAIN_FAMILIES,
    StyleTransform,
    luma,
    sample_transform,
)


@pytest.fixture(scope="module")
def pictures():
    """(images (3, 3, 32, 32) over white, background (3, 1, 32, 32))."""
    generator = torch.Generator().manual_seed(0)
    background = torch.ones(3, 1, 32, 32)
    background[..., 8:24, 8:24] = 0
    images = torch.rand(3, 3, 32, 32, generator=generator)
    return images + (1 - images) * background, background


def one_of(family, seed):
    return StyleTransform((family,), (FAMILIES[family](np.random.default_rng(seed)),))


def test_families_are_kept_apart():
    assert set(TRAIN_FAMILIES) & set(HELDOUT_FAMILIES) == set()
    assert set(TRAIN_FAMILIES) | set(HELDOUT_FAMILIES) == set(FAMILIES)
    drawn = {name for seed in range(400) for name in sample_transform(np.random.default_rng(seed)).families}
    assert drawn == set(TRAIN_FAMILIES), "each is drawn, and none that is held out"
    heldout = [sample_transform(np.random.default_rng(seed), HELDOUT_FAMILIES) for seed in range(60)]
    assert {name for transform in heldout for name in transform.families} == set(HELDOUT_FAMILIES)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_seed_says_everything(family, pictures):
    same, other = one_of(family, 1)(*pictures), one_of(family, 2)(*pictures)
    assert torch.equal(same, one_of(family, 1)(*pictures))
    if family != "invert":  # it has nothing to draw
        assert not torch.allclose(same, other, atol=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_image_of_a_set_alike(family, pictures):
    images, background = pictures
    transform = one_of(family, 3)
    together = transform(images, background)
    for i in range(len(images)):
        alone = transform(images[i : i + 1], background[i : i + 1])
        assert torch.allclose(together[i : i + 1], alone, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_range_shape_and_that_something_happens(family, pictures):
    images, background = pictures
    for seed in range(5):
        out = one_of(family, seed)(images, background)
        assert out.shape == images.shape and out.dtype == images.dtype
        assert torch.isfinite(out).all() and out.min() >= 0 and out.max() <= 1
        assert (out - images).abs().mean() > 1e-3


def test_inputs_are_left_alone(pictures):
    images, background = (tensor.clone() for tensor in pictures)
    for family in FAMILIES:
        one_of(family, 0)(images, background)
    assert torch.equal(images, pictures[0]) and torch.equal(background, pictures[1])


def test_steps_follow_each_other(pictures):
    images, background = pictures
    first, second = one_of("duotone", 1), one_of("tint", 2)
    chain = StyleTransform(("duotone", "tint"), first.steps + second.steps)
    expected = second(first(images, background), background)
    assert torch.equal(chain(images, background), expected)


def test_known_transforms(pictures):
    images, background = pictures
    assert torch.allclose(one_of("invert", 0)(images, background), 1 - images)
    colored = one_of("background", 0)(images, background)
    assert torch.allclose(colored[..., 8:24, 8:24], images[..., 8:24, 8:24])
    ground = colored[:, :, 0, 0]
    assert (ground == ground[0]).all() and (ground[0] < 0.999).any()
    assert torch.allclose(colored[:, :, :8], ground[0].view(1, 3, 1, 1).expand(3, 3, 8, 32))
    # A duotone lies on the line between its two colors.
    duotone = one_of("duotone", 5)(images, background).movedim(1, -1).reshape(-1, 3)
    assert torch.linalg.svdvals(duotone - duotone.mean(0))[1] < 1e-3
    # Posterizing leaves two or three values a channel.
    assert all(len(one_of("posterize", seed)(images, background).unique()) in (2, 3) for seed in range(5))
    # Turned hues keep a grey grey.
    grey = torch.full((1, 3, 8, 8), 0.4)
    assert torch.allclose(one_of("hue", 4)(grey, background[:1, :, :8, :8]), grey, atol=1e-5)


def test_what_a_drawing_stands_on_leaves_the_drawing_alone(pictures):
    images, background = pictures
    for family in GROUNDS:
        for seed in range(5):
            out = one_of(family, seed)(images, background)
            assert torch.allclose(out[..., 8:24, 8:24], images[..., 8:24, 8:24], atol=1e-6), family
    # A disc or a rounded square: its middle is covered, the picture's corners are not, and it has both symmetries.
    bare = torch.ones(1, 3, 64, 64), torch.ones(1, 1, 64, 64)
    for seed in range(5):
        out = one_of("tile", seed)(*bare)
        assert torch.allclose(out, out.flip(-1), atol=1e-5) and torch.allclose(out, out.transpose(-1, -2), atol=1e-5)
        assert (out[..., 32, 32] - out[..., 0, 0]).abs().max() > 0.02
    # A shadow is the silhouette again, moved: as many pixels of its color as the silhouette does not hide.
    whole = 1 - background[:1]
    for seed in range(5):
        out = one_of("shadow", seed)(torch.zeros(1, 3, 32, 32), 1 - whole)
        ground = out[0, :, 0, 0] if (out[0, :, 0, 0] == out[0, :, 31, 31]).all() else out[0, :, 0, 31]
        cast = ((out[0] - ground[:, None, None]).abs().amax(0) > 1e-4) & (whole[0, 0] == 0)
        assert 0 < cast.sum() <= 16 * 16
        rows, columns = cast.nonzero().T
        assert rows.min() >= 8 - 3 and rows.max() <= 23 + 3 and columns.min() >= 8 - 3 and columns.max() <= 23 + 3


def test_redrawn_lines_and_tiles(pictures):
    images, background = pictures
    # Heavier or lighter, never both: every pixel moves to a neighbour's value in one direction.
    for seed in range(5):
        change = one_of("weight", seed)(images, background) - images
        assert (change <= 1e-6).all() or (change >= -1e-6).all()
    # A stamp lies between paper and ink: one line in color space.
    for seed in range(5):
        colors = one_of("stamp", seed)(images, background).movedim(1, -1).reshape(-1, 3)
        assert torch.linalg.svdvals(colors - colors.mean(0))[1] < 1e-3
    mosaic = one_of("mosaic", 0)(images, background)
    assert torch.equal(mosaic[..., ::2, ::2], mosaic[..., 1::2, 1::2])
    # Blur keeps a flat picture but for the wash, which is one gain towards white.
    flat = torch.full((1, 3, 32, 32), 0.3)
    blurred = one_of("soft", 1)(flat, background[:1])
    assert (blurred - blurred[0, 0, 0, 0]).abs().max() < 1e-5 and 0.3 <= blurred[0, 0, 0, 0] < 0.3 + 0.7 * 0.4
    # Pressed paper: no relief where nothing is drawn.
    paper = one_of("relief", 2)(flat, background[:1])
    assert (paper - paper[..., :1, :1]).abs().max() < 1e-6


def test_luma():
    colors = torch.eye(3).view(3, 3, 1, 1)
    assert torch.allclose(luma(colors).flatten(), torch.tensor([0.299, 0.587, 0.114]))
