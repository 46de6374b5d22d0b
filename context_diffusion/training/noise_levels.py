"""Where the noise levels of a training run gather."""

from __future__ import annotations

import torch
from torch import Tensor

from .settings import DiffusionSettings


def noise_levels(
    count: int,
    generator: torch.Generator,
    mean: float = DiffusionSettings.noise_mean,
    uniform: float = DiffusionSettings.noise_uniform,
) -> Tensor:
    """Noise levels s in (0, 1) of rectified flow, (count,).

    Logit-normal with its centre moved towards high noise, where colors are decided, and a share drawn evenly. The
    quantiles are stratified over the batch, so that every step sees all levels.

    Args:
        count: how many.
        generator: source of randomness.
        mean: of the normal under the logistic function; above 0 favours high noise.
        uniform: share drawn evenly over (0, 1).
    """
    quantile = (torch.arange(count) + torch.rand(count, generator=generator)) / count
    quantile = quantile[torch.randperm(count, generator=generator)].clamp(1e-4, 1 - 1e-4)
    normal = torch.sigmoid(mean + torch.special.ndtri(quantile))
    even = torch.rand(count, generator=generator) < uniform
    return torch.where(even, quantile, normal)
