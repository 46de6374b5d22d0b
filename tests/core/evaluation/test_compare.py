"""The table's comparisons against arithmetic written out, and their tests of pairs against counting."""

import itertools

import numpy as np
import pytest
import torch

from context_diffusion.evaluation.compare import TaskFigures, between_models, within_model
from context_diffusion.evaluation.measure import Rows

from .test_estimates import GROUPS, random


def rows(distance, seed=0, **values):
    shape = distance.shape
    values = {"distance": distance, "mse": random(*shape, seed=seed), "style_accuracy": (random(*shape) > 0.5).double(),
              "cosine": random(*shape, seed=seed + 1), **values}  # fmt: skip
    return Rows(values, {}, random(*shape, 6, seed=seed).float())


def test_win_rate_counts_nearer_outputs_and_half_the_ties():
    a = rows(torch.tensor([[1.0, 2, 3, 4, 5], [1, 1, 1, 1, 1]], dtype=torch.float64))
    b = rows(torch.tensor([[2.0, 2, 2, 2, 2], [2, 2, 2, 2, 2]], dtype=torch.float64))
    task = TaskFigures(GROUPS, {"a": a, "b": b}, {})
    rate, p = task.win_rate("a", "b")
    assert rate.value == pytest.approx((1 + 0.5 + 5) / 10)
    assert 0 < p <= 1
    assert task.win_rate("b", "a")[0].value == pytest.approx(1 - rate.value)


def test_comparisons_against_plain_arithmetic():
    truth = random(5, 6, seed=9).float()
    measured = {
        ("x", "c", 1): rows(random(1, 5)),
        ("x", "c", 3): rows(random(1, 5, seed=2), 2),
        ("x", "shuffled", 3): rows(random(1, 5, seed=3), 3, style_accuracy=torch.zeros(1, 5)),
        ("y", "c", 3): rows(random(1, 5, seed=4), 4),
    }
    task = TaskFigures.of(measured, truth, GROUPS, "F")
    values = {key: {name: one.value for name, one in figures.items()} for key, figures in task.figures.items()}
    assert {"rmse", "kid_F", "frechet_F", "cosine", "distance", "style_accuracy"} == set(values["x", "c", 1])
    within = {row["name"]: row["value"][0] for row in within_model(task, "x", 3, chance=0.1)}
    full, wrong = values["x", "c", 3], values["x", "shuffled", 3]
    assert within["rmse c / shuffled"] == pytest.approx(full["rmse"] / wrong["rmse"])
    lost = full["style_accuracy"] / (full["style_accuracy"] - 0.1)
    assert within["style accuracy above chance that shuffling loses"] == pytest.approx(lost)
    assert within["kid_F c, k = 3 less k = 1"] == pytest.approx(full["kid_F"] - values["x", "c", 1]["kid_F"])
    between = {row["name"]: row["value"][0] for row in between_models(task, "x", "y")}
    assert between["kid_F c, k = 3"] == pytest.approx(full["kid_F"] / values["y", "c", 3]["kid_F"])
    assert between["cosine c, k = 3"] == pytest.approx(full["cosine"] - values["y", "c", 3]["cosine"])
    assert 0 <= between["win rate c, k = 3"] <= 1 and not any("k = 1" in name for name in between)


def test_p_values_from_one_k_to_the_next_are_what_the_documentation_says():
    """Style accuracy, a mean over images: signs of whole codepoints. RMSE and KID: the bootstrap."""
    groups = [f"{index // 2}" for index in range(10)]
    truth = random(10, 6, seed=9).float()
    right = {1: (random(2, 10, seed=5) > 0.6).double(), 3: (random(2, 10, seed=6) > 0.4).double()}
    measured = {("x", "c", k): rows(random(2, 10, seed=k), k, style_accuracy=hits) for k, hits in right.items()}
    task = TaskFigures.of(measured, truth, groups, "F")
    p = {row["name"]: row["p"] for row in within_model(task, "x", 3, chance=0.1)}
    # Two seeds of two images of each of five codepoints: all 32 choices of signs.
    sums = (right[3] - right[1]).sum(0).reshape(5, 2).sum(1).numpy()
    signs = np.array(list(itertools.product((-1, 1), repeat=5)))
    exact = np.mean(np.abs(signs @ sums) >= abs(sums.sum()) - 1e-9)
    assert p["style_accuracy c, k = 3 less k = 1"] == pytest.approx(exact, abs=0.02)
    least, most = task.figures["x", "c", 1], task.figures["x", "c", 3]
    # So few codepoints are all on one side in nearly every resample: the bootstrap would say something else.
    assert most["style_accuracy"].less(least["style_accuracy"]).p_value(0.0) < exact / 10
    for figure in ("rmse", "kid_F"):
        assert p[f"{figure} c, k = 3 less k = 1"] == most[figure].less(least[figure]).p_value(0.0)
