"""Figures with bootstrap intervals against plain loops and arithmetic written out, and against known answers."""

import itertools

import numpy as np
import pytest
import torch

from context_diffusion.errors import ContextDiffusionError
from context_diffusion.evaluation.estimates import (
    Estimate,
    kid_estimate,
    mean_estimate,
    resample_groups,
    sign_flip_test,
)

GROUPS = ["a", "b", "a", "c", "d"]


def random(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def kid(first, second):
    """As `evaluate heldout` has it: an output is compared with its own truth too."""
    return kid_estimate(first, second, [str(row) for row in range(len(second))], samples=1, own_pairs=True).value


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


def test_rmse_against_a_loop_over_resamples(errors):
    sums, counts, groups = errors
    value, low, high = mean_estimate(sums, groups, counts, samples=4000).root().triple()
    assert value == pytest.approx(np.sqrt(sums.sum().item() / counts.sum().item()))
    rng = np.random.default_rng(5)
    drawn = []
    for _ in range(4000):
        rows = np.concatenate([[2 * g, 2 * g + 1] for g in rng.integers(20, size=20)])
        drawn.append(np.sqrt(sums.numpy()[rows].sum() / counts.numpy()[rows].sum()))
    expected = np.quantile(drawn, [0.025, 0.975])
    assert [low, high] == pytest.approx(expected.tolist(), abs=0.06 * (expected[1] - expected[0]))


def test_groups_that_agree_widen_the_interval(errors):
    sums, counts, groups = errors
    grouped = mean_estimate(sums, groups, counts).root().triple()
    single = mean_estimate(sums, [str(i) for i in range(40)], counts).root().triple()
    assert grouped[2] - grouped[1] > 1.2 * (single[2] - single[1])


def test_ratios_are_paired(errors):
    sums, counts, groups = errors
    ratio = mean_estimate(sums * 0.64, groups, counts).over(mean_estimate(sums, groups, counts)).root()
    # Every resample has the same ratio, however much its two parts vary.
    assert ratio.triple() == pytest.approx([0.8, 0.8, 0.8])
    assert mean_estimate(sums * 3, groups).over(mean_estimate(sums, groups)).triple() == pytest.approx([3, 3, 3])


def test_the_root_of_a_ratio_is_the_ratio_of_roots(errors):
    sums, counts, groups = errors
    first, second = (mean_estimate(each, groups, counts) for each in (sums, sums.flip(0) * 1.7))
    value, low, high = first.over(second).root().triple()
    assert value == pytest.approx(first.root().value / second.root().value)
    assert low < value < high


def test_intervals_cover_the_true_mean():
    rng = np.random.default_rng(0)
    hits = 0
    for seed in range(200):
        values = torch.tensor(rng.normal(1.0, 1.0, size=60))
        _, low, high = mean_estimate(values, [str(i) for i in range(60)], samples=400, seed=seed).triple()
        hits += low <= 1.0 <= high
    assert 180 <= hits <= 199  # 190 expected of 95%


def test_resamples_without_any_value_are_left_out():
    sums, counts = torch.tensor([0.0, 6.0]), torch.tensor([0.0, 3.0])
    assert mean_estimate(sums, ["a", "b"], counts).triple() == pytest.approx([2, 2, 2])


def test_counts_that_do_not_fit_are_refused():
    with pytest.raises(ContextDiffusionError, match="2 sums, 2 counts and 3 groups"):
        mean_estimate(torch.ones(2), ["a", "b", "c"])


def test_means_over_runs_and_their_draws():
    rows = random(2, 5)
    estimate = mean_estimate(rows, GROUPS, samples=200)
    assert estimate.value == pytest.approx(np.mean(rows.numpy()))
    weights = resample_groups(GROUPS, 200).numpy()
    expected = (weights * rows.mean(0).numpy()).sum(1) / weights.sum(1)
    assert np.allclose(estimate.drawn.numpy(), expected)
    ends = np.quantile(expected, [0.025, 0.975]).tolist()
    assert estimate.triple() == pytest.approx([estimate.value, *ends])
    assert str(estimate) == f"{estimate.value:.3f} [{ends[0]:.3f}, {ends[1]:.3f}]"
    assert estimate.root().value == pytest.approx(np.sqrt(np.mean(rows.numpy())))


def test_kid_equals_its_definition():
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(9, 5)), rng.normal(0.4, 1.3, size=(9, 5))

    def kernel(x, y):
        return (float(np.dot(x, y)) / len(x) + 1) ** 3

    pairs = list(itertools.permutations(range(9), 2))
    within = sum(kernel(rows[i], rows[j]) for rows in (first, second) for i, j in pairs) / len(pairs)
    expected = within - 2 * sum(kernel(x, y) for x in first for y in second) / 81
    assert kid(torch.tensor(first), torch.tensor(second)) == pytest.approx(expected, rel=1e-9)


def test_kid_is_unbiased_around_zero_for_equal_distributions():
    rng = np.random.default_rng(0)
    values = [kid(*torch.tensor(rng.normal(size=(2, 30, 8)))) for _ in range(200)]
    error = np.std(values) / np.sqrt(len(values))
    assert abs(np.mean(values)) < 3 * error  # a biased estimate is about 0.5 here, 20 errors away
    shifted = torch.tensor(rng.normal(1.0, 1.0, size=(30, 8)))
    assert kid(torch.tensor(rng.normal(size=(30, 8))), shifted) > 10 * np.std(values)


def test_kid_averages_seeds():
    rng = np.random.default_rng(0)
    first, second = torch.tensor(rng.normal(size=(2, 40, 6))), torch.tensor(rng.normal(0.5, 1, size=(40, 6)))
    value, low, high = kid_estimate(first, second, [str(i // 2) for i in range(40)], 200, own_pairs=True).triple()
    assert value == pytest.approx((kid(first[0], second) + kid(first[1], second)) / 2, rel=1e-9)
    assert low < value < high


def test_kid_is_not_shifted_by_pairs_of_image_and_truth():
    rng = np.random.default_rng(0)
    truth = torch.tensor(rng.normal(size=(60, 6)))
    near = truth + 0.1 * torch.tensor(rng.normal(size=(60, 6)))
    value, low, high = kid_estimate(near, truth, [str(i) for i in range(60)], 400, own_pairs=True).triple()
    assert low < value < high


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
    estimate = kid_estimate(first, second, GROUPS, samples=100)
    assert estimate.value == pytest.approx(expected)
    low, high = estimate.triple()[1:]
    assert low < estimate.value < high
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
    estimate = Estimate(1.0, torch.tensor([-1.0] + [1.0] * 98 + [2.0]))
    assert estimate.p_value(0.0) == pytest.approx(2 * 2 / 101)
    assert estimate.p_value(1.0) == 1.0


def test_sign_flips_against_all_of_them():
    values = {"a": 0.9, "b": 0.4, "c": -0.2, "d": 0.5}
    differences = torch.tensor([0.5, 0.4, 0.4, -0.2, 0.5], dtype=torch.float64)  # two of a
    total = sum(values.values())
    flips = [abs(sum(s * v for s, v in zip(signs, values.values(), strict=True)))
             for signs in itertools.product((-1, 1), repeat=4)]  # fmt: skip
    exact = sum(flip >= total - 1e-9 for flip in flips) / len(flips)
    assert sign_flip_test(differences, GROUPS) == pytest.approx(exact, abs=0.02)
    assert sign_flip_test(torch.zeros(5), GROUPS) == 1.0
