"""Bootstrap intervals over content: whole codepoints are drawn again, with all their styles and seeds.

Images of one codepoint in several styles are not independent, so the codepoint is the unit. A resample is a
row of weights (how often each codepoint was drawn), which makes every figure a matrix product over sums per
sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import ContextDiffusionError
from .metrics import polynomial_kernel


@dataclass(frozen=True)
class Interval:
    """A figure and the central interval of its bootstrap distribution.

    Attributes:
        value: from the data as they are.
        low: lower end, the 2.5th percentile unless asked otherwise.
        high: upper end.
    """

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def resample_groups(groups: Sequence[str], samples: int = 2000, seed: int = 0) -> Tensor:
    """How often each sample counts in each bootstrap resample over groups.

    The same groups, number and seed give the same weights, whatever is measured: ratios are paired by it.

    Args:
        groups: the group, say the codepoint, of each of n samples.
        samples: S, how many resamples.
        seed: of the draws.

    Returns:
        (S, n) float64 weights; in each row the members of a group share one whole number.

    Raises:
        ContextDiffusionError: no sample.
    """
    if not len(groups):
        raise ContextDiffusionError("no samples to draw again: a bootstrap needs at least one")
    names = sorted(set(groups))
    index = {name: position for position, name in enumerate(names)}
    member = torch.tensor([index[group] for group in groups])
    generator = torch.Generator().manual_seed(seed)
    draws = torch.randint(len(names), (samples, len(names)), generator=generator)
    counts = torch.zeros(samples, len(names), dtype=torch.float64)
    counts.scatter_add_(1, draws, torch.ones_like(draws, dtype=torch.float64))
    return counts[:, member]


def mean_interval(
    sums: Tensor,
    groups: Sequence[str],
    counts: Tensor | None = None,
    *,
    samples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """A pooled mean, sums.sum() / counts.sum().

    Args:
        sums: (n,), one a sample.
        groups: the group of each sample.
        counts: (n,), how many values each sum holds; None for one.
        samples: resamples.
        seed: of the resamples.
        level: of the interval, 0 to 1.
    """
    value, drawn = _pooled(sums, counts, groups, samples, seed)
    return _interval(value, drawn, level)


def rmse_interval(
    sums: Tensor,
    counts: Tensor,
    groups: Sequence[str],
    *,
    samples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Root of the pooled mean square error from `squared_error`'s sums and counts; see `mean_interval`."""
    value, drawn = _pooled(sums, counts, groups, samples, seed)
    return _interval(value.sqrt(), drawn.sqrt(), level)


def rmse_ratio(
    first: tuple[Tensor, Tensor],
    second: tuple[Tensor, Tensor],
    groups: Sequence[str],
    *,
    samples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """RMSE of one setting over RMSE of another on the same samples, resampled in pairs.

    Args:
        first: (sums, counts) of the numerator, (n,) each.
        second: (sums, counts) of the denominator, aligned with `first`.
        groups: the group of each sample.
        samples: resamples.
        seed: of the resamples.
        level: of the interval, 0 to 1.
    """
    value, drawn = _pooled(*first, groups, samples, seed)
    other, other_drawn = _pooled(*second, groups, samples, seed)
    return _interval((value / other).sqrt(), (drawn / other_drawn).sqrt(), level)


def ratio_of_means(
    first: Tensor,
    second: Tensor,
    groups: Sequence[str],
    *,
    samples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Mean of one figure over mean of another on the same samples, (n,) each, resampled in pairs."""
    value, drawn = _pooled(first, None, groups, samples, seed)
    other, other_drawn = _pooled(second, None, groups, samples, seed)
    return _interval(value / other, drawn / other_drawn, level)


def kid_interval(
    first: Tensor,
    second: Tensor,
    groups: Sequence[str],
    *,
    samples: int = 500,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """KID between generated images and their truths, resampled over groups in pairs; see `kid_draws`.

    Args:
        first: features of generated images (n, d); (m, n, d) for m seeds, whose KIDs are averaged.
        second: features of the truths (n, d), aligned with `first`.
        groups: the group of each row.
        samples: resamples.
        seed: of the resamples.
        level: of the interval, 0 to 1.
    """
    return _interval(*kid_draws(first, second, groups, samples=samples, seed=seed), level)


def kid_draws(
    first: Tensor, second: Tensor, groups: Sequence[str], *, samples: int = 500, seed: int = 0, own_pairs: bool = True
) -> tuple[Tensor, Tensor]:
    """KID from the data as they are, and from every bootstrap resample.

    A sample drawn twice is never compared with its own copy, as the unbiased estimate leaves out the
    diagonal; with its own truth it is compared as often as it was drawn. Squares of the weights there would
    shift the resamples away from the value.

    Args:
        first: features of generated images (n, d); (m, n, d) for m seeds, whose KIDs are averaged.
        second: features of the truths (n, d), aligned with `first`.
        groups: the group of each row.
        samples: resamples.
        seed: of the resamples.
        own_pairs: whether an output is compared with its own truth, which it resembles: with few samples that
            lowers the value. Without, it is the U-statistic over pairs of (output, truth), unbiased for them.

    Returns:
        (value, draws), float64, shapes () and (samples,).
    """
    first = first[None] if first.ndim == 2 else first
    if first.ndim != 3 or first.shape[1:] != second.shape:
        raise ContextDiffusionError(
            f"features of shapes {tuple(first.shape)} and {tuple(second.shape)}: rows must belong together"
        )
    first, second = first.double(), second.double()
    # KID is linear in its kernels: the mean over seeds of the kernels gives the mean of their KIDs.
    within = polynomial_kernel(second, second)
    within = within + sum(polynomial_kernel(one, one) for one in first) / len(first)
    within.fill_diagonal_(0.0)
    across = sum(polynomial_kernel(one, second) for one in first) / len(first)
    weights = torch.cat([torch.ones(1, len(second), dtype=torch.float64), resample_groups(groups, samples, seed)])
    total = weights.sum(1)
    pairs = total.square() - weights.square().sum(1)
    own = weights @ across.diagonal()
    across = across - across.diagonal().diag()
    values = ((weights @ within) * weights).sum(1) / pairs
    crossed = ((weights @ across) * weights).sum(1)
    values = values - 2.0 * ((crossed + own) / (pairs + total) if own_pairs else crossed / pairs)
    return values[0], values[1:]


def _pooled(
    sums: Tensor, counts: Tensor | None, groups: Sequence[str], samples: int, seed: int
) -> tuple[Tensor, Tensor]:
    sums = sums.double().cpu()
    counts = torch.ones_like(sums) if counts is None else counts.double().cpu()
    if not len(sums) == len(counts) == len(groups):
        raise ContextDiffusionError(
            f"{len(sums)} sums, {len(counts)} counts and {len(groups)} groups: one of each for every sample"
        )
    weights = resample_groups(groups, samples, seed)
    return sums.sum() / counts.sum(), (weights @ sums) / (weights @ counts)


def _interval(value: Tensor, drawn: Tensor, level: float) -> Interval:
    # A resample whose samples hold no value at all (no region, an empty mask) says nothing.
    drawn = drawn[~drawn.isnan()]
    tail = (1.0 - level) / 2.0
    if not len(drawn):
        return Interval(float(value), float("nan"), float("nan"))
    low, high = torch.quantile(drawn, torch.tensor([tail, 1.0 - tail], dtype=drawn.dtype)).tolist()
    return Interval(float(value), low, high)
