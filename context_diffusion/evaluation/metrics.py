"""Distances between images, and between sets of features.

Sums over pixels come a sample at a time (`squared_error`), so that pooled figures and their bootstrap
intervals (`estimates.py`) stand on the same numbers. KID is an estimate too: its intervals need every kernel.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import ContextDiffusionError


def squared_error(first: Tensor, second: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Squared differences summed over each image, and how many values were summed.

    Args:
        first: (B, 3, H, W) in [0, 1].
        second: the same shape.
        mask: (B, H, W) bool, the pixels that count; None for all.

    Returns:
        (sums, counts), float64, (B,) each; sums.sum() / counts.sum() is the pooled mean square error.

    Raises:
        ContextDiffusionError: the shapes differ.
    """
    _check_pair(first, second)
    errors = (first - second).double().square().sum(1)
    if mask is None:
        counts = torch.full((len(first),), float(first[0].numel()), dtype=torch.float64, device=first.device)
    else:
        errors = errors * mask
        counts = mask.flatten(1).sum(1).double() * first.shape[1]
    return errors.flatten(1).sum(1), counts


def rmse(first: Tensor, second: Tensor, mask: Tensor | None = None) -> float:
    """Root of the pooled mean square error on [0, 1], over the pixels of all images together.

    Args:
        first: (B, 3, H, W) in [0, 1].
        second: the same shape.
        mask: (B, H, W) bool, say `cases.pictures.foregrounds`; None for whole images.
    """
    sums, counts = squared_error(first, second, mask)
    return float((sums.sum() / counts.sum()).sqrt())


def psnr(first: Tensor, second: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each image for a peak of 1: -10 log10(MSE), in dB, (B,) float64."""
    sums, counts = squared_error(first, second)
    return -10.0 * torch.log10((sums / counts).clamp_min(1e-12))


def ssim(first: Tensor, second: Tensor) -> Tensor:
    """Structural similarity of each image as scikit-image defines it: Gaussian windows of sigma 1.5, (B,)."""
    from skimage.metrics import structural_similarity

    _check_pair(first, second)
    values = [
        structural_similarity(
            a.cpu().numpy(),
            b.cpu().numpy(),
            channel_axis=0,
            data_range=1.0,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
        for a, b in zip(first, second, strict=True)
    ]
    return torch.tensor(values, dtype=torch.float64)


def polynomial_kernel(first: Tensor, second: Tensor) -> Tensor:
    """k(x, y) = (x.y / d + 1)^3 for all pairs: (n, d), (m, d) -> (n, m)."""
    return (first @ second.T / first.shape[1] + 1.0) ** 3


def frechet_distance(first: Tensor, second: Tensor) -> float:
    """Frechet distance of two Gaussians fitted to features: |mu1 - mu2|^2 + Tr(S1 + S2 - 2 (S1 S2)^(1/2)).

    Name a figure by its features: Frechet-EffNetLite0; FID means Inception's. Far fewer samples than
    dimensions bias it upwards: compare equal numbers only.

    Args:
        first: features (n, d), n at least 2.
        second: features (m, d), m at least 2.

    Raises:
        ContextDiffusionError: other shapes, or too few features.
    """
    _check_features(first, second)
    first, second = first.double(), second.double()
    mean = (first.mean(0) - second.mean(0)).square().sum()
    first, second = first - first.mean(0), second - second.mean(0)
    scale = (len(first) - 1, len(second) - 1)
    if max(len(first), len(second)) <= first.shape[1]:
        # With S1 = A'A and S2 = B'B, Tr (S1 S2)^(1/2) is the sum of the singular values of AB'.
        cross = torch.linalg.svdvals(first @ second.T).sum() / (scale[0] * scale[1]) ** 0.5
    else:
        # It is the sum of the roots of the eigenvalues of the symmetric S1^(1/2) S2 S1^(1/2).
        values, vectors = torch.linalg.eigh(first.T @ first / scale[0])
        root = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
        cross = torch.linalg.eigvalsh(root @ (second.T @ second / scale[1]) @ root).clamp_min(0).sqrt().sum()
    traces = first.square().sum() / scale[0] + second.square().sum() / scale[1]
    return float(mean + traces - 2.0 * cross)


def _check_pair(first: Tensor, second: Tensor) -> None:
    if first.shape != second.shape or first.ndim != 4:
        raise ContextDiffusionError(
            f"images of shapes {tuple(first.shape)} and {tuple(second.shape)}: two equal batches are needed"
        )


def _check_features(first: Tensor, second: Tensor) -> None:
    if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[1]:
        raise ContextDiffusionError(
            f"features of shapes {tuple(first.shape)} and {tuple(second.shape)}: give (n, d) and (m, d)"
        )
    if min(len(first), len(second)) < 2:
        raise ContextDiffusionError(f"{len(first)} and {len(second)} features: at least 2 of each are needed")
