"""Metrics against formulas written out in numpy and scipy, and against cases with a known answer."""

import numpy as np
import pytest
import torch

from context_diffusion.errors import ContextDiffusionError
from context_diffusion.evaluation.metrics import frechet_distance, psnr, rmse, squared_error, ssim

from .test_estimates import kid


@pytest.fixture
def pair():
    generator = torch.Generator().manual_seed(1)
    return torch.rand(3, 3, 24, 20, generator=generator), torch.rand(3, 3, 24, 20, generator=generator)


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
