"""Bootstrap intervals against a plain loop, and against cases with a known answer."""

import numpy as np
import pytest
import torch

from context_diffusion.errors import ContextDiffusionError
from context_diffusion.evaluation.metrics import kid
from context_diffusion.evaluation.probes import fit_probe
from context_diffusion.evaluation.statistics import (
    kid_interval,
    mean_interval,
    ratio_of_means,
    resample_groups,
    rmse_interval,
    rmse_ratio,
)


@pytest.fixture
def errors():
    """Sums and counts of 40 samples of 20 groups; a group's two samples are alike."""
    rng = np.random.default_rng(0)
    sums = np.repeat(rng.gamma(2.0, 10.0, size=20), 2) * rng.uniform(0.9, 1.1, size=40)
    counts = rng.integers(50, 100, size=40).astype(float)
    return torch.tensor(sums), torch.tensor(counts), [f"group {i // 2}" for i in range(40)]


def test_groups_are_drawn_whole():
    groups = ["a", "a", "b", "c", "c", "c"]
    weights = resample_groups(groups, samples=500, seed=3)
    assert weights.shape == (500, 6)
    assert (weights[:, 0] == weights[:, 1]).all() and (weights[:, 3] == weights[:, 5]).all()
    drawn = weights[:, [0, 2, 3]]
    assert (drawn.sum(1) == 3).all()
    assert drawn.mean(0).tolist() == pytest.approx([1, 1, 1], abs=0.15)
    assert torch.equal(weights, resample_groups(groups, samples=500, seed=3))
    assert not torch.equal(weights, resample_groups(groups, samples=500, seed=4))
    with pytest.raises(ContextDiffusionError, match="no samples"):
        resample_groups([])


def test_rmse_interval_against_a_loop_over_resamples(errors):
    sums, counts, groups = errors
    found = rmse_interval(sums, counts, groups, samples=4000)
    assert found.value == pytest.approx(np.sqrt(sums.sum().item() / counts.sum().item()))
    rng = np.random.default_rng(5)
    drawn = []
    for _ in range(4000):
        rows = np.concatenate([[2 * g, 2 * g + 1] for g in rng.integers(20, size=20)])
        drawn.append(np.sqrt(sums.numpy()[rows].sum() / counts.numpy()[rows].sum()))
    low, high = np.quantile(drawn, [0.025, 0.975])
    width = high - low
    assert found.low == pytest.approx(low, abs=0.06 * width)
    assert found.high == pytest.approx(high, abs=0.06 * width)


def test_groups_that_agree_widen_the_interval(errors):
    sums, counts, groups = errors
    grouped = rmse_interval(sums, counts, groups)
    single = rmse_interval(sums, counts, [str(i) for i in range(40)])
    assert grouped.high - grouped.low > 1.2 * (single.high - single.low)


def test_ratios_are_paired(errors):
    sums, counts, groups = errors
    ratio = rmse_ratio((sums * 0.64, counts), (sums, counts), groups)
    # Every resample has the same ratio, however much its two parts vary.
    assert (ratio.value, ratio.low, ratio.high) == pytest.approx((0.8, 0.8, 0.8))
    means = ratio_of_means(sums * 3, sums, groups)
    assert (means.value, means.low, means.high) == pytest.approx((3, 3, 3))


def test_rmse_ratio_is_the_ratio_of_pooled_roots(errors):
    sums, counts, groups = errors
    other = sums.flip(0) * 1.7
    ratio = rmse_ratio((sums, counts), (other, counts), groups)
    expected = rmse_interval(sums, counts, groups).value / rmse_interval(other, counts, groups).value
    assert ratio.value == pytest.approx(expected)
    assert ratio.low < ratio.value < ratio.high


def test_intervals_cover_the_true_mean():
    rng = np.random.default_rng(0)
    hits = 0
    for seed in range(200):
        values = torch.tensor(rng.normal(1.0, 1.0, size=60))
        found = mean_interval(values, [str(i) for i in range(60)], samples=400, seed=seed)
        hits += found.low <= 1.0 <= found.high
    assert 180 <= hits <= 199  # 190 expected of 95%


def test_resamples_without_any_value_are_left_out():
    sums, counts = torch.tensor([0.0, 6.0]), torch.tensor([0.0, 3.0])
    found = mean_interval(sums, ["a", "b"], counts)
    assert (found.value, found.low, found.high) == pytest.approx((2, 2, 2))


def test_counts_that_do_not_fit_are_refused():
    with pytest.raises(ContextDiffusionError, match="2 sums, 2 counts and 3 groups"):
        mean_interval(torch.ones(2), ["a", "b", "c"])


def test_kid_interval_value_is_kid_and_averages_seeds():
    rng = np.random.default_rng(0)
    first, second = torch.tensor(rng.normal(size=(2, 40, 6))), torch.tensor(rng.normal(0.5, 1, size=(40, 6)))
    groups = [str(i // 2) for i in range(40)]
    one = kid_interval(first[0], second, groups, samples=200)
    assert one.value == pytest.approx(kid(first[0], second), rel=1e-9)
    both = kid_interval(first, second, groups, samples=200)
    assert both.value == pytest.approx((kid(first[0], second) + kid(first[1], second)) / 2, rel=1e-9)
    assert both.low < both.value < both.high


def test_kid_interval_is_not_shifted_by_pairs_of_image_and_truth():
    rng = np.random.default_rng(0)
    truth = torch.tensor(rng.normal(size=(60, 6)))
    near = truth + 0.1 * torch.tensor(rng.normal(size=(60, 6)))
    found = kid_interval(near, truth, [str(i) for i in range(60)], samples=400)
    assert found.low < found.value < found.high


def test_a_probe_finds_what_is_linear_and_no_more():
    rng = np.random.default_rng(0)
    rows = torch.tensor(rng.normal(size=(400, 10)), dtype=torch.float32)
    labels = ["red" if row[0] + row[1] > 0 else "blue" for row in rows]
    noise = [str(label) for label in rng.choice(["red", "blue"], size=400)]
    probe = fit_probe(rows[:300], labels[:300])
    assert probe.classes == ("blue", "red")
    assert probe.correct(rows[300:], labels[300:]).mean() > 0.95
    assert 0.3 < fit_probe(rows[:300], noise[:300]).correct(rows[300:], noise[300:]).mean() < 0.7
    with pytest.raises(ContextDiffusionError, match="1 class"):
        fit_probe(rows, ["red"] * 400)


def test_a_probe_is_at_the_minimum_of_its_loss():
    rng = np.random.default_rng(1)
    rows, labels = torch.tensor(rng.normal(size=(90, 4)), dtype=torch.float32), list("abc") * 30
    probe = fit_probe(rows, labels, penalties=(0.01,))
    weight, bias = probe.weight.double().requires_grad_(), probe.bias.double().requires_grad_()
    z = ((rows - probe.mean) / probe.scale).double() @ weight.T + bias
    chosen = z[torch.arange(90), torch.tensor([probe.classes.index(label) for label in labels])]
    loss = (z.exp().sum(1).log() - chosen).mean() + 0.005 * weight.square().sum()
    loss.backward()
    assert weight.grad.abs().max() < 1e-3 and bias.grad.abs().max() < 1e-3
