"""Figures with bootstrap intervals over content: whole codepoints are drawn again, with all their styles and seeds.

Images of one codepoint in several styles are not independent, so the codepoint is the unit. A resample is a row of
weights (how often each codepoint was drawn), which makes every figure a matrix product over sums per sample. Ratios
and differences are taken in each resample, so that they keep the pairing of their samples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..errors import ContextDiffusionError
from .metrics import polynomial_kernel

SAMPLES = 1000
# What a 95% interval leaves out on either side.
_TAIL = (1.0 - 0.95) / 2.0


@dataclass(frozen=True)
class Estimate:
    """A figure, and what it is in every bootstrap resample over content.

    Attributes:
        value: from the data as they are.
        drawn: (S,) float64; empty where the figure has no meaningful bootstrap.
    """

    value: float
    drawn: Tensor = field(repr=False)

    def triple(self) -> list[float | None]:
        """[value, low, high], the central 95% of the draws; [value, None, None] without draws."""
        drawn = self._numbers()
        if not len(drawn):
            return [self.value, None, None]
        ends = torch.quantile(drawn, torch.tensor([_TAIL, 1.0 - _TAIL], dtype=drawn.dtype)).tolist()
        return [self.value, *ends]

    def __str__(self) -> str:
        value, low, high = self.triple()
        return f"{value:.3f}" if low is None else f"{value:.3f} [{low:.3f}, {high:.3f}]"

    def root(self) -> Estimate:
        """Its square root, value and draws rounded alike."""
        return Estimate(float(torch.tensor(self.value, dtype=torch.float64).sqrt()), self.drawn.sqrt())

    def over(self, other: Estimate) -> Estimate:
        """This figure over another of the same samples."""
        return self._with(other, torch.true_divide)

    def less(self, other: Estimate) -> Estimate:
        """This figure less another of the same samples."""
        return self._with(other, torch.sub)

    def p_value(self, null: float) -> float | None:
        """Two-sided bootstrap test: twice the share of draws on the far side of `null`; None without draws."""
        drawn = self._numbers()
        if not len(drawn):
            return None
        below, above = int((drawn <= null).sum()), int((drawn >= null).sum())
        return min(1.0, 2.0 * (min(below, above) + 1) / (len(drawn) + 1))

    def _numbers(self) -> Tensor:
        # A resample whose samples hold no value at all (no region, an empty mask) says nothing.
        return self.drawn[~self.drawn.isnan()]

    def _with(self, other: Estimate, join: Callable[[Tensor, Tensor], Tensor]) -> Estimate:
        values = (torch.tensor(each.value, dtype=torch.float64) for each in (self, other))
        both = len(self.drawn) == len(other.drawn)
        return Estimate(float(join(*values)), join(self.drawn, other.drawn) if both else self.drawn.new_zeros(0))


def resample_groups(groups: Sequence[str], samples: int = SAMPLES, seed: int = 0) -> Tensor:
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


def mean_estimate(
    sums: Tensor, groups: Sequence[str], counts: Tensor | None = None, samples: int = SAMPLES, seed: int = 0
) -> Estimate:
    """A pooled mean, sums.sum() / counts.sum().

    Args:
        sums: (n,), one a sample; (m, n) of m runs over the same samples, which are averaged first.
        groups: the group of each sample.
        counts: (n,), how many values each sum holds; None for one.
        samples: resamples.
        seed: of the resamples.

    Raises:
        ContextDiffusionError: counts or groups do not fit the sums.
    """
    sums = sums.double().cpu()
    sums = sums.mean(0) if sums.ndim == 2 else sums
    counts = torch.ones_like(sums) if counts is None else counts.double().cpu()
    if not len(sums) == len(counts) == len(groups):
        raise ContextDiffusionError(
            f"{len(sums)} sums, {len(counts)} counts and {len(groups)} groups: one of each for every sample"
        )
    weights = resample_groups(groups, samples, seed)
    return Estimate(float(sums.sum() / counts.sum()), (weights @ sums) / (weights @ counts))


def kid_estimate(
    first: Tensor,
    second: Tensor,
    groups: Sequence[str],
    samples: int = SAMPLES,
    seed: int = 0,
    own_pairs: bool = False,
) -> Estimate:
    """Kernel inception distance: unbiased MMD^2 under k(x, y) = (x.y / d + 1)^3 (arXiv 1801.01401).

    Name a figure by its features: KID-EffNetLite0. Near 0, and at times below it, for equal distributions. In a
    resample a sample drawn twice is never compared with its own copy, as the unbiased estimate leaves out the
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

    Raises:
        ContextDiffusionError: rows do not belong together.
    """
    first = first[None] if first.ndim == 2 else first
    if first.ndim != 3 or first.shape[1:] != second.shape:
        raise ContextDiffusionError(
            f"features of shapes {tuple(first.shape)} and {tuple(second.shape)}: rows must belong together"
        )
    first, second = first.double(), second.double()
    # KID is linear in its kernels: the mean over seeds of the kernels gives the mean of their KIDs.
    within = polynomial_kernel(second, second)
    within = within + sum(polynomial_kernel(run, run) for run in first) / len(first)
    within.fill_diagonal_(0.0)
    across = sum(polynomial_kernel(run, second) for run in first) / len(first)
    weights = torch.cat([torch.ones(1, len(second), dtype=torch.float64), resample_groups(groups, samples, seed)])
    total = weights.sum(1)
    pairs = total.square() - weights.square().sum(1)
    own = weights @ across.diagonal()
    across = across - across.diagonal().diag()
    values = ((weights @ within) * weights).sum(1) / pairs
    crossed = ((weights @ across) * weights).sum(1)
    values = values - 2.0 * ((crossed + own) / (pairs + total) if own_pairs else crossed / pairs)
    return Estimate(float(values[0]), values[1:])


def sign_flip_test(differences: Tensor, groups: Sequence[str], flips: int = 10000, seed: int = 0) -> float:
    """Paired permutation test of a mean difference of 0, whole groups changing their sign together.

    Args:
        differences: (n,), one a sample.
        groups: the group, say the codepoint, of each.
        flips: random choices of signs.
        seed: of the signs.

    Returns:
        The two-sided p-value, at least 1 / (flips + 1).
    """
    names = {name: index for index, name in enumerate(dict.fromkeys(groups))}
    member = torch.tensor([names[group] for group in groups])
    sums = torch.zeros(len(names), dtype=torch.float64).index_add_(0, member, differences.double())
    generator = torch.Generator().manual_seed(seed)
    signs = torch.randint(2, (flips, len(names)), generator=generator).double() * 2 - 1
    # Sums in another order differ in the last bits: equal ones must count as equal.
    extreme = (signs @ sums).abs() >= sums.sum().abs() - 1e-9
    return (int(extreme.sum()) + 1) / (flips + 1)
