"""The table's figures of one task, and the comparisons that it is made for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .estimates import Estimate, kid_estimate, mean_estimate, sign_flip_test
from .measure import Rows
from .metrics import frechet_distance

# model, setting, k
Key = tuple[str, str, int]


@dataclass(frozen=True)
class TaskFigures:
    """What was measured of one task and every figure of it.

    Attributes:
        groups: the codepoint of each case.
        rows: of every model, setting and k.
        figures: the same, as estimates by name.
    """

    groups: list[str]
    rows: dict[Key, Rows]
    figures: dict[Key, dict[str, Estimate]]

    @classmethod
    def of(cls, rows: dict[Key, Rows], truth: Tensor, groups: list[str], features: str) -> TaskFigures:
        """Figures of rows.

        Args:
            rows: of every model, setting and k.
            truth: features of the truths (n, d).
            groups: the codepoint of each case.
            features: their name, which the distances of sets carry.
        """
        return cls(groups, rows, {key: _estimates(each, truth, groups, features) for key, each in rows.items()})

    def difference_p(self, figure: str, first: Key, second: Key) -> float:
        """The p-value of no difference in a figure that is a mean over images, its runs averaged first."""
        means = [self.rows[key].values[figure].mean(0) for key in (first, second)]
        return sign_flip_test(means[0] - means[1], self.groups)

    def win_rate(self, first: Key, second: Key) -> tuple[Estimate, float]:
        """How often the first of two outputs (same case, same noise) is nearer the truth, and the p-value of 1/2.

        A tie is half a win.
        """
        a, b = (self.rows[key].values["distance"] for key in (first, second))
        wins = (a < b).double() + 0.5 * (a == b).double()
        return mean_estimate(wins, self.groups), sign_flip_test(wins.mean(0) - 0.5, self.groups)


def within_model(task: TaskFigures, model: str, k: int, chance: float) -> list[dict]:
    """What context is worth to one model: against the controls with k images, and from one k to the next.

    Args:
        task: figures of every model.
        model: which.
        k: the table's.
        chance: style accuracy of guessing.
    """
    rows = []
    for control, control_k in (("shuffled", k), ("query_only", 0)):
        full, other = task.figures.get((model, "c", k)), task.figures.get((model, control, control_k))
        if full and other:
            for figure in ("rmse", "distance"):
                if figure in full:
                    ratio = full[figure].over(other[figure])
                    rows.append(_row(model, f"{figure} c / {control}", ratio, ratio.p_value(1.0)))
            # What is not above chance has nothing to lose.
            if control == "shuffled" and "style_accuracy" in full and full["style_accuracy"].value > chance:
                lost = _lost_above_chance(full["style_accuracy"], other["style_accuracy"], chance)
                rows.append(_row(model, "style accuracy above chance that shuffling loses", lost, lost.p_value(0.0)))
    return rows + [row for setting in ("c", "cp") for row in _from_k_to_k(task, model, setting)]


def between_models(task: TaskFigures, first: str, second: str) -> list[dict]:
    """The first model against the second, in every setting and with every k that both have."""
    rows = []
    for ours in task.figures:
        theirs = (second, *ours[1:])
        if ours[0] != first or theirs not in task.figures:
            continue
        setting, k = ours[1:]
        place = f"{setting}, k = {k}" if k else setting
        for figure, estimate in task.figures[ours].items():
            other = task.figures[theirs][figure]
            if figure.startswith(("kid_", "frechet_")) or figure in ("rmse", "distance"):
                ratio = estimate.over(other)
                rows.append(_row(f"{first} / {second}", f"{figure} {place}", ratio, ratio.p_value(1.0)))
            else:
                p = task.difference_p(figure, ours, theirs)
                rows.append(_row(f"{first} less {second}", f"{figure} {place}", estimate.less(other), p))
        if setting != "vae":
            rows.append(_row(f"{first} against {second}", f"win rate {place}", *task.win_rate(ours, theirs)))
    return rows


def _estimates(rows: Rows, truth: Tensor, groups: Sequence[str], features: str) -> dict[str, Estimate]:
    figures = {}
    if "mse" in rows.values:
        pooled = mean_estimate(rows.values["mse"], groups)
        # Not `root`, which may round the last bit otherwise: tables of earlier releases are to be reproduced.
        figures["rmse"] = Estimate(pooled.value**0.5, pooled.drawn.sqrt())
    figures[f"kid_{features}"] = kid_estimate(rows.features, truth, groups)
    # Repeated samples lower the rank of a covariance: a bootstrap of this one would not hold its own value.
    distances = [frechet_distance(run, truth) for run in rows.features]
    figures[f"frechet_{features}"] = Estimate(sum(distances) / len(distances), torch.zeros(0, dtype=torch.float64))
    for name in ("cosine", "distance", "style_accuracy", "edge_f1"):
        if name in rows.values:
            figures[name] = mean_estimate(rows.values[name], groups)
    return figures


def _lost_above_chance(right: Estimate, shuffled: Estimate, chance: float) -> Estimate:
    level = Estimate(chance, torch.full_like(right.drawn, chance))
    return right.less(shuffled).over(right.less(level))


def _from_k_to_k(task: TaskFigures, model: str, setting: str) -> Iterator[dict]:
    """From each number of context images to the next, and from the least to the most."""
    ks = sorted(key[2] for key in task.figures if key[:2] == (model, setting))
    steps = list(zip(ks, ks[1:], strict=False))
    for low, high in steps + ([(ks[0], ks[-1])] if len(steps) > 1 else []):
        more, less = (model, setting, high), (model, setting, low)
        for figure, estimate in task.figures[more].items():
            difference = estimate.less(task.figures[less][figure])
            if figure.startswith("kid_") or figure == "rmse":
                p = difference.p_value(0.0)
            elif figure == "style_accuracy":
                p = task.difference_p(figure, more, less)
            else:
                continue
            yield _row(model, f"{figure} {setting}, k = {high} less k = {low}", difference, p)


def _row(model: str, name: str, estimate: Estimate, p: float | None) -> dict:
    return {"model": model, "name": name, "value": estimate.triple(), "p": p}
