"""From measured rows to figures with intervals, and to the comparisons that the table is made for."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..estimates import Estimate, kid_estimate, mean_estimate, rmse_estimate, sign_flip_test
from ..metrics import frechet_distance
from .measure import Rows
from .plan import Selection

# model, setting, k
Key = tuple[str, str, int]


def estimates(rows: Rows, truth: Rows, groups: Sequence[str], features: str) -> dict[str, Estimate]:
    """Every figure of one cell.

    Args:
        rows: of the cell.
        truth: of the control `truth`.
        groups: the codepoint of each case.
        features: their name, which the distances of sets carry.
    """
    found = {}
    if "mse" in rows.values:
        found["rmse"] = rmse_estimate(rows.values["mse"], groups)
    found[f"kid_{features}"] = kid_estimate(rows.features, truth.features[0], groups)
    # Repeated samples lower the rank of a covariance: a bootstrap of this one would not hold its own value.
    distances = [frechet_distance(one, truth.features[0]) for one in rows.features]
    found[f"frechet_{features}"] = Estimate(sum(distances) / len(distances), torch.zeros(0, dtype=torch.float64))
    for name in ("cosine", "distance", "style_accuracy", "edge_f1"):
        if name in rows.values:
            found[name] = mean_estimate(rows.values[name], groups)
    return found


def win_rate(first: Rows, second: Rows, groups: Sequence[str]) -> tuple[Estimate, float]:
    """How often the first of two outputs (same case, same noise) is nearer the truth, and the p-value of 1/2.

    A tie is half a win.
    """
    a, b = first.values["distance"], second.values["distance"]
    wins = (a < b).double() + 0.5 * (a == b).double()
    return mean_estimate(wins, groups), sign_flip_test(wins.mean(0) - 0.5, groups)


def within_model(
    found: dict[Key, dict[str, Estimate]],
    measured: dict[Key, Rows],
    model: str,
    groups: Sequence[str],
    selection: Selection,
    chance: float,
) -> list[dict]:
    """What context is worth to one model: against the controls, and from one k to the next."""
    rows = []

    def add(name: str, estimate: Estimate, null: float) -> None:
        rows.append(_row(model, name, estimate, estimate.p_value(null)))

    k = selection.main_k
    full = found.get((model, "c", k))
    for control, control_k in (("shuffled", k), ("query_only", 0)):
        other = found.get((model, control, control_k))
        if full is None or other is None:
            continue
        for figure in ("rmse", "distance"):
            if figure in full:
                add(f"{figure} c / {control}", full[figure].over(other[figure]), 1.0)
        # What is not above chance has nothing to lose.
        if control == "shuffled" and "style_accuracy" in full and full["style_accuracy"].value > chance:
            kept, whole = other["style_accuracy"], full["style_accuracy"]
            level = Estimate(chance, torch.full_like(whole.drawn, chance))
            lost = whole.less(kept).over(whole.less(level))
            add("style accuracy above chance that shuffling loses", lost, 0.0)
    for setting in ("c", "cp"):
        ks = sorted(k for model_, setting_, k in found if (model_, setting_) == (model, setting))
        steps = list(zip(ks, ks[1:], strict=False))
        for low, high in steps + ([(ks[0], ks[-1])] if len(steps) > 1 else []):
            for figure, estimate in found[model, setting, high].items():
                name = f"{figure} {setting}, k = {high} less k = {low}"
                difference = estimate.less(found[model, setting, low][figure])
                if figure.startswith("kid_") or figure == "rmse":
                    add(name, difference, 0.0)
                elif figure == "style_accuracy":
                    p = _paired_p(measured[model, setting, high], measured[model, setting, low], figure, groups)
                    rows.append(_row(model, name, difference, p))
    return rows


def between_models(
    found: dict[Key, dict[str, Estimate]],
    measured: dict[Key, Rows],
    models: tuple[str, str],
    groups: Sequence[str],
) -> list[dict]:
    """The first model against the second, in every setting and with every k that both have."""
    rows = []
    first, second = models
    for model, setting, k in found:
        if model != first or (second, setting, k) not in found:
            continue
        place = f"{setting}, k = {k}" if k else setting
        ours, theirs = found[first, setting, k], found[second, setting, k]
        for figure, estimate in ours.items():
            if figure.startswith(("kid_", "frechet_")) or figure in ("rmse", "distance"):
                ratio = estimate.over(theirs[figure])
                rows.append(_row(f"{first} / {second}", f"{figure} {place}", ratio, ratio.p_value(1.0)))
            else:
                difference = estimate.less(theirs[figure])
                p = _paired_p(measured[first, setting, k], measured[second, setting, k], figure, groups)
                rows.append(_row(f"{first} less {second}", f"{figure} {place}", difference, p))
        if setting != "vae":
            rate, p = win_rate(measured[first, setting, k], measured[second, setting, k], groups)
            rows.append(_row(f"{first} against {second}", f"win rate {place}", rate, p))
    return rows


def _paired_p(first: Rows, second: Rows, figure: str, groups: Sequence[str]) -> float:
    """The p-value of no difference in a figure that is a mean over images, its runs averaged first."""
    return sign_flip_test(first.values[figure].mean(0) - second.values[figure].mean(0), groups)


def _row(model: str, name: str, estimate: Estimate, p: float | None) -> dict:
    return {"model": model, "name": name, "value": estimate.triple(), "p": p}
