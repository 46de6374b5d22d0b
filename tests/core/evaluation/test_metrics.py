"""Metrics against formulas written out in numpy and scipy, and against cases with a known answer."""

import numpy as np
import pytest
import torch

from context_diffusion.errors import ContextDiffusionError
from context_diffusion.evaluation.color import color_deviation, color_regions, palette, palette_distance
from context_diffusion.evaluation.layout import edge_f1, edges
from context_diffusion.evaluation.metrics import (
    foreground_mask,
    frechet_distance,
    kid,
    psnr,
    rmse,
    squared_error,
    ssim,
)


@pytest.fixture
def pair():
    generator = torch.Generator().manual_seed(1)
    return torch.rand(3, 3, 24, 20, generator=generator), torch.rand(3, 3, 24, 20, generator=generator)


def square(color=(0.8, 0.2, 0.1), size=40, inset=10, background=1.0):
    """One flat square in the middle of a plain background, (1, 3, size, size)."""
    image = torch.full((1, 3, size, size), background)
    image[0, :, inset:-inset, inset:-inset] = torch.tensor(color).view(3, 1, 1)
    return image


def test_rmse_is_the_root_of_the_pooled_mean(pair):
    first, second = pair
    second[0] = first[0]  # a mean of roots would differ from the root of the mean here
    expected = np.sqrt(np.mean((first.numpy().astype(np.float64) - second.numpy()) ** 2))
    assert rmse(first, second) == pytest.approx(expected, rel=1e-9)


def test_masked_rmse_pools_over_masked_pixels(pair):
    first, second = pair
    mask = torch.zeros(3, 24, 20, dtype=torch.bool)
    mask[0, :3], mask[1, :, :15] = True, True
    chosen = np.broadcast_to(mask.numpy()[:, None], first.shape)
    expected = np.sqrt(np.mean((first.double().numpy()[chosen] - second.double().numpy()[chosen]) ** 2))
    assert rmse(first, second, mask) == pytest.approx(expected, rel=1e-6)
    assert squared_error(first, second, mask)[1].tolist() == [3 * 20 * 3, 24 * 15 * 3, 0]


def test_images_of_other_shapes_are_refused(pair):
    with pytest.raises(ContextDiffusionError, match="equal batches"):
        squared_error(pair[0], pair[1][:2])


def test_psnr_and_ssim_of_known_pairs(pair):
    first = pair[0] * 0.5
    assert psnr(first, first + 0.1).tolist() == pytest.approx([20.0] * 3, abs=1e-4)
    assert ssim(first, first).tolist() == pytest.approx([1.0] * 3)
    grey = torch.full((1, 3, 24, 24), 0.25)
    # Flat images have no variance: only the luminance term of SSIM is left.
    expected = (2 * 0.25 * 0.75 + 0.01**2) / (0.25**2 + 0.75**2 + 0.01**2)
    assert ssim(grey, grey + 0.5).item() == pytest.approx(expected, rel=1e-5)


def test_foreground_leaves_holes_in_and_background_out():
    image = square(background=0.9)
    image[0, :, 18:22, 18:22] = 0.9  # the background's color, but not joined to it
    mask = foreground_mask(image)[0]
    assert mask.sum() == 20 * 20
    assert mask[20, 20] and not mask[5, 5]


def kid_by_loops(first, second):
    def kernel(x, y):
        return (float(np.dot(x, y)) / len(x) + 1) ** 3

    n, m = len(first), len(second)
    a = sum(kernel(first[i], first[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    b = sum(kernel(second[i], second[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return a + b - 2 * sum(kernel(x, y) for x in first for y in second) / (n * m)


def test_kid_equals_its_definition():
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(9, 5)), rng.normal(0.4, 1.3, size=(7, 5))
    found = kid(torch.tensor(first), torch.tensor(second))
    assert found == pytest.approx(kid_by_loops(first, second), rel=1e-9)


def test_kid_is_unbiased_around_zero_for_equal_distributions():
    rng = np.random.default_rng(0)
    values = [kid(*torch.tensor(rng.normal(size=(2, 30, 8)))) for _ in range(200)]
    error = np.std(values) / np.sqrt(len(values))
    assert abs(np.mean(values)) < 3 * error  # a biased estimate is about 0.5 here, 20 errors away
    shifted = torch.tensor(rng.normal(1.0, 1.0, size=(30, 8)))
    assert kid(torch.tensor(rng.normal(size=(30, 8))), shifted) > 10 * np.std(values)


def test_kid_over_subsets_is_repeatable_and_near_the_whole():
    rng = np.random.default_rng(0)
    first, second = torch.tensor(rng.normal(size=(80, 8))), torch.tensor(rng.normal(1, 1, size=(80, 8)))
    found = kid(first, second, subset_size=40, subsets=100)
    assert found == kid(first, second, subset_size=40, subsets=100)
    assert found == pytest.approx(kid(first, second), rel=0.1)
    with pytest.raises(ContextDiffusionError, match="subset_size is 90"):
        kid(first, second, subset_size=90)


def test_frechet_distance_against_scipy():
    linalg = pytest.importorskip("scipy.linalg")
    rng = np.random.default_rng(0)
    first = rng.normal(size=(60, 6)) @ rng.normal(size=(6, 6))
    second = rng.normal(0.3, 1, size=(50, 6)) @ rng.normal(size=(6, 6))
    cov1, cov2 = np.cov(first.T), np.cov(second.T)
    expected = np.sum((first.mean(0) - second.mean(0)) ** 2)
    expected += np.trace(cov1 + cov2 - 2 * linalg.sqrtm(cov1 @ cov2).real)
    assert frechet_distance(torch.tensor(first), torch.tensor(second)) == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(torch.tensor(first), torch.tensor(first)) == pytest.approx(0, abs=1e-8)


def test_edges_lie_on_the_border_of_a_square():
    found = edges(square())[0]
    rows, columns = found.nonzero(as_tuple=True)
    assert len(rows) >= 60
    distance = torch.minimum((rows - 9.5).abs().minimum((rows - 29.5).abs()), (columns - 9.5).abs())
    distance = distance.minimum((columns - 29.5).abs())
    assert distance.max() <= 1.5


def test_edge_f1_counts_by_hand():
    wanted = torch.zeros(1, 20, 20, dtype=torch.bool)
    wanted[0, 5] = True  # 20 pixels
    one_off, two_off = wanted.roll(1, 1), wanted.roll(2, 1)
    assert edge_f1(wanted, wanted).item() == 1
    assert edge_f1(one_off, wanted).item() == 1
    assert edge_f1(two_off, wanted).item() == 0
    assert edge_f1(two_off, wanted, tolerance=2).item() == 1
    more = wanted.clone()
    more[0, 15, :10] = True  # 10 pixels that nobody wanted: precision 20/30, recall 1
    assert edge_f1(more, wanted).item() == pytest.approx(2 * (2 / 3) / (2 / 3 + 1))
    assert edge_f1(wanted, more).item() == pytest.approx(2 * (2 / 3) / (2 / 3 + 1))
    nothing = torch.zeros_like(wanted)
    assert edge_f1(nothing, nothing).item() == 1
    assert edge_f1(nothing, wanted).item() == 0


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
    mask = foreground_mask(red)
    assert palette(red).sum().item() == pytest.approx(1)
    assert palette_distance(red, red.flip(2)).item() == pytest.approx(0, abs=1e-6)
    assert palette_distance(red, blue).item() == pytest.approx(20 * 20 / 40**2, rel=1e-5)
    assert palette_distance(red, blue, mask, mask).item() == pytest.approx(1, rel=1e-5)
    third = square((2 / 3, 1 / 3, 0.0))
    half = square((0.5, 1 / 3, 0.0))  # half way between two nodes of the cube: half in common with either
    assert palette_distance(third, half, mask, mask).item() == pytest.approx(0.5, rel=1e-4)


@pytest.mark.parametrize(("n", "m", "d"), [(12, 9, 20), (30, 25, 6), (12, 30, 20)])
def test_frechet_distance_is_the_same_by_few_samples_as_by_many_dimensions(n, m, d):
    from scipy.linalg import sqrtm

    rng = np.random.default_rng(3)
    first, second = rng.normal(size=(n, d)), rng.normal(size=(m, d)) * 1.5 + 0.2
    cov1, cov2 = np.cov(first.T), np.cov(second.T)
    expected = np.sum((first.mean(0) - second.mean(0)) ** 2) + np.trace(cov1 + cov2 - 2 * sqrtm(cov1 @ cov2).real)
    assert frechet_distance(torch.tensor(first), torch.tensor(second)) == pytest.approx(expected, rel=1e-4)


class Flattened(torch.nn.Module):
    """Pictures as their own features, for libraries that want a network."""

    num_features = 12

    def forward(self, images):
        return images.flatten(1).double()


@pytest.mark.parametrize("n, m", [(40, 50), (9, 10)])
def test_distances_of_sets_are_those_of_torchmetrics(n, m):
    # From their own modules: the package lists them only beside torch-fidelity, whose Inception is not used here.
    from torchmetrics.image.fid import FrechetInceptionDistance
    from torchmetrics.image.kid import KernelInceptionDistance

    rng = np.random.default_rng(4)
    first, second = (
        torch.tensor(rng.uniform(high=high, size=(count, 3, 2, 2))) for count, high in ((n, 1.0), (m, 0.7))
    )
    frechet = FrechetInceptionDistance(Flattened(), normalize=True, input_img_size=(3, 2, 2))
    # Its KID draws subsets of one size from both sides; of equal sides the whole is one such subset.
    kernel = KernelInceptionDistance(Flattened(), subsets=1, subset_size=n, normalize=True)
    for metric, truth in ((frechet, second), (kernel, second[:n])):
        metric.set_dtype(torch.float64)
        metric.update(truth, real=True)
        metric.update(first, real=False)
    features = first.flatten(1), second.flatten(1)
    assert frechet_distance(*features) == pytest.approx(float(frechet.compute()), rel=1e-5)
    assert kid(features[0], features[1][:n]) == pytest.approx(float(kernel.compute()[0]), rel=1e-5)
