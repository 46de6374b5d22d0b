"""Figures with their bootstrap draws: ratios and differences of two keep the pairing of their samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .statistics import kid_draws, resample_groups

SAMPLES = 1000


@dataclass(frozen=True)
class Estimate:
    """A figure, and what it is in every bootstrap resample over content.

    Attributes:
        value: from the data as they are.
        drawn: (S,) float64; empty where the figure has no meaningful bootstrap.
    """

    value: float
    drawn: Tensor = field(repr=False)

    def triple(self, level: float = 0.95) -> list[float | None]:
        """[value, low, high], the central interval of the draws; [value, None, None] without draws."""
        drawn = self.drawn[~self.drawn.isnan()]
        if not len(drawn):
            return [self.value, None, None]
        tail = (1.0 - level) / 2.0
        ends = torch.quantile(drawn, torch.tensor([tail, 1.0 - tail], dtype=drawn.dtype)).tolist()
        return [self.value, *ends]

    def over(self, other: Estimate) -> Estimate:
        """This figure over another of the same samples."""
        return Estimate(_ratio(self.value, other.value), _pair(self, other, lambda a, b: a / b))

    def less(self, other: Estimate) -> Estimate:
        """This figure less another of the same samples."""
        return Estimate(self.value - other.value, _pair(self, other, lambda a, b: a - b))

    def p_value(self, null: float) -> float | None:
        """Two-sided bootstrap test: twice the share of draws on the far side of `null`; None without draws."""
        drawn = self.drawn[~self.drawn.isnan()]
        if not len(drawn):
            return None
        below, above = int((drawn <= null).sum()), int((drawn >= null).sum())
        return min(1.0, 2.0 * (min(below, above) + 1) / (len(drawn) + 1))


def mean_estimate(rows: Tensor, groups: Sequence[str], samples: int = SAMPLES, seed: int = 0) -> Estimate:
    """The mean of figures a sample: (n,), or (m, n) of m runs over the same samples."""
    rows = rows.double().reshape(-1, len(groups)).mean(0)
    weights = resample_groups(groups, samples, seed)
    return Estimate(float(rows.mean()), (weights @ rows) / weights.sum(1))


def rmse_estimate(mse: Tensor, groups: Sequence[str], samples: int = SAMPLES, seed: int = 0) -> Estimate:
    """Root of the pooled mean square error, from that of each of equally large images."""
    pooled = mean_estimate(mse, groups, samples, seed)
    return Estimate(pooled.value**0.5, pooled.drawn.sqrt())


def kid_estimate(
    features: Tensor, truth: Tensor, groups: Sequence[str], samples: int = SAMPLES, seed: int = 0
) -> Estimate:
    """KID of features (m, n, d) against those of their truths (n, d), own pairs left out, see `kid_draws`."""
    value, drawn = kid_draws(features, truth, groups, samples=samples, seed=seed, own_pairs=False)
    return Estimate(float(value), drawn)


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


def _ratio(first: float, second: float) -> float:
    return first / second if second else float("nan")


def _pair(first: Estimate, second: Estimate, join) -> Tensor:
    if len(first.drawn) != len(second.drawn):
        return first.drawn.new_zeros(0)
    return join(first.drawn, second.drawn)
