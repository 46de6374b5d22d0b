"""Estimates with their draws against arithmetic written out, and the tests of pairs against counting."""

import itertools

import numpy as np
import pytest
import torch

from context_diffusion.evaluation.estimates import (
    Estimate,
    kid_estimate,
    mean_estimate,
    rmse_estimate,
    sign_flip_test,
)
from context_diffusion.evaluation.statistics import mean_interval, resample_groups
from context_diffusion.evaluation.table.compare import between_models, estimates, win_rate, within_model
from context_diffusion.evaluation.table.measure import Rows
from context_diffusion.evaluation.table.plan import Selection

GROUPS = ["a", "b", "a", "c", "d"]


def random(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_means_over_runs_and_their_draws():
    rows = random(2, 5)
    found = mean_estimate(rows, GROUPS, samples=200)
    assert found.value == pytest.approx(np.mean(rows.numpy()))
    weights = resample_groups(GROUPS, 200).numpy()
    expected = (weights * rows.mean(0).numpy()).sum(1) / weights.sum(1)
    assert np.allclose(found.drawn.numpy(), expected)
    interval = mean_interval(rows.mean(0), GROUPS, samples=200)
    assert found.triple() == pytest.approx([interval.value, interval.low, interval.high])
    assert rmse_estimate(rows, GROUPS).value == pytest.approx(np.sqrt(np.mean(rows.numpy())))


def test_kid_leaves_own_pairs_out():
    first, second = random(2, 5, 4), random(5, 4, seed=1)

    def kernel(x, y):
        return (float(x @ y) / 4 + 1) ** 3

    pairs = [(i, j) for i in range(5) for j in range(5) if i != j]
    expected = np.mean([
        kernel(one[i], one[j]) + kernel(second[i], second[j]) - 2 * kernel(one[i], second[j])
        for one in first
        for i, j in pairs
    ])  # fmt: skip
    found = kid_estimate(first, second, GROUPS, samples=100)
    assert found.value == pytest.approx(expected)
    low, high = found.triple()[1:]
    assert low < found.value < high
    # An output that is its truth is no nearer to the other truths than they are to each other.
    assert kid_estimate(second[None], second, GROUPS).triple() == pytest.approx([0, 0, 0], abs=1e-9)


def test_ratios_and_differences_keep_pairs():
    one = mean_estimate(random(5), GROUPS)
    twice = mean_estimate(2 * random(5), GROUPS)
    assert twice.over(one).triple() == pytest.approx([2, 2, 2])
    assert twice.less(one).triple() == pytest.approx(one.triple())
    bare = Estimate(3.0, torch.zeros(0))
    assert bare.over(one).triple()[1:] == [None, None] and bare.p_value(0) is None


def test_bootstrap_p_value_counts_draws_beyond_the_null():
    found = Estimate(1.0, torch.tensor([-1.0] + [1.0] * 98 + [2.0]))
    assert found.p_value(0.0) == pytest.approx(2 * 2 / 101)
    assert found.p_value(1.0) == 1.0


def test_sign_flips_against_all_of_them():
    values = {"a": 0.9, "b": 0.4, "c": -0.2, "d": 0.5}
    differences = torch.tensor([0.5, 0.4, 0.4, -0.2, 0.5], dtype=torch.float64)  # two of a
    total = sum(values.values())
    flips = [abs(sum(s * v for s, v in zip(signs, values.values(), strict=True)))
             for signs in itertools.product((-1, 1), repeat=4)]  # fmt: skip
    exact = sum(flip >= total - 1e-9 for flip in flips) / len(flips)
    assert sign_flip_test(differences, GROUPS) == pytest.approx(exact, abs=0.02)
    assert sign_flip_test(torch.zeros(5), GROUPS) == 1.0


def rows(distance, seed=0, **values):
    shape = distance.shape
    values = {"distance": distance, "mse": random(*shape, seed=seed), "style_accuracy": (random(*shape) > 0.5).double(),
              "cosine": random(*shape, seed=seed + 1), **values}  # fmt: skip
    return Rows(values, random(*shape, 6, seed=seed).float())


def test_win_rate_counts_nearer_outputs_and_half_the_ties():
    a = rows(torch.tensor([[1.0, 2, 3, 4, 5], [1, 1, 1, 1, 1]], dtype=torch.float64))
    b = rows(torch.tensor([[2.0, 2, 2, 2, 2], [2, 2, 2, 2, 2]], dtype=torch.float64))
    rate, p = win_rate(a, b, GROUPS)
    assert rate.value == pytest.approx((1 + 0.5 + 5) / 10)
    assert 0 < p <= 1
    assert win_rate(b, a, GROUPS)[0].value == pytest.approx(1 - rate.value)


def test_comparisons_against_plain_arithmetic():
    truth = Rows({}, random(1, 5, 6, seed=9).float())
    measured = {
        ("x", "c", 1): rows(random(1, 5)),
        ("x", "c", 3): rows(random(1, 5, seed=2), 2),
        ("x", "shuffled", 3): rows(random(1, 5, seed=3), 3, style_accuracy=torch.zeros(1, 5)),
        ("y", "c", 3): rows(random(1, 5, seed=4), 4),
    }
    found = {key: estimates(one, truth, GROUPS, "F") for key, one in measured.items()}
    values = {key: {name: one.value for name, one in figures.items()} for key, figures in found.items()}
    assert {"rmse", "kid_F", "frechet_F", "cosine", "distance", "style_accuracy"} == set(values["x", "c", 1])
    within = {
        row["name"]: row["value"][0] for row in within_model(found, measured, "x", GROUPS, Selection(), chance=0.1)
    }
    full, wrong = values["x", "c", 3], values["x", "shuffled", 3]
    assert within["rmse c / shuffled"] == pytest.approx(full["rmse"] / wrong["rmse"])
    lost = full["style_accuracy"] / (full["style_accuracy"] - 0.1)
    assert within["style accuracy above chance that shuffling loses"] == pytest.approx(lost)
    assert within["kid_F c, k = 3 less k = 1"] == pytest.approx(full["kid_F"] - values["x", "c", 1]["kid_F"])
    between = {row["name"]: row["value"][0] for row in between_models(found, measured, ("x", "y"), GROUPS)}
    assert between["kid_F c, k = 3"] == pytest.approx(full["kid_F"] / values["y", "c", 3]["kid_F"])
    assert between["cosine c, k = 3"] == pytest.approx(full["cosine"] - values["y", "c", 3]["cosine"])
    assert 0 <= between["win rate c, k = 3"] <= 1 and not any("k = 1" in name for name in between)


def test_p_values_from_one_k_to_the_next_are_what_the_documentation_says():
    """Style accuracy, a mean over images: signs of whole codepoints. RMSE and KID: the bootstrap."""
    groups = [f"{index // 2}" for index in range(10)]
    truth = Rows({}, random(1, 10, 6, seed=9).float())
    right = {1: (random(2, 10, seed=5) > 0.6).double(), 3: (random(2, 10, seed=6) > 0.4).double()}
    measured = {("x", "c", k): rows(random(2, 10, seed=k), k, style_accuracy=hits) for k, hits in right.items()}
    found = {key: estimates(one, truth, groups, "F") for key, one in measured.items()}
    p = {row["name"]: row["p"] for row in within_model(found, measured, "x", groups, Selection(), chance=0.1)}
    # Two seeds of two images of each of five codepoints: all 32 choices of signs.
    sums = (right[3] - right[1]).sum(0).reshape(5, 2).sum(1).numpy()
    signs = np.array(list(itertools.product((-1, 1), repeat=5)))
    exact = np.mean(np.abs(signs @ sums) >= abs(sums.sum()) - 1e-9)
    assert p["style_accuracy c, k = 3 less k = 1"] == pytest.approx(exact, abs=0.02)
    least, most = found["x", "c", 1], found["x", "c", 3]
    # So few codepoints are all on one side in nearly every resample: the bootstrap would say something else.
    assert most["style_accuracy"].less(least["style_accuracy"]).p_value(0.0) < exact / 10
    for figure in ("rmse", "kid_F"):
        assert p[f"{figure} c, k = 3 less k = 1"] == most[figure].less(least[figure]).p_value(0.0)
