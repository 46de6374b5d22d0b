"""Guidance against the formula with every branch written out."""

import itertools

import pytest
import torch

from context_diffusion.model.guidance import CONTEXT_ONLY, FULL, NULL, branch_weights, guide


@pytest.fixture
def predictions():
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(2, 4, 8, 8, generator=generator) for name in (FULL, CONTEXT_ONLY, NULL)}


@pytest.mark.parametrize("g_txt, g_ctx", list(itertools.product([0.0, 1.0, 1.5, 7.0], [0.0, 1.0, 3.0])))
def test_equals_the_formula(predictions, g_txt, g_ctx):
    full, context, null = predictions[FULL], predictions[CONTEXT_ONLY], predictions[NULL]
    expected = null + g_ctx * (context - null) + g_txt * (full - context)
    got = guide(predictions, branch_weights(g_txt, g_ctx))
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def test_equal_scales_need_two_branches_and_give_ordinary_guidance(predictions):
    weights = branch_weights(3.0, 3.0)
    assert list(weights) == [FULL, NULL]
    expected = predictions[NULL] + 3.0 * (predictions[FULL] - predictions[NULL])
    torch.testing.assert_close(guide(predictions, weights), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "g_txt, g_ctx, branches",
    [
        (1.0, 1.0, {FULL}),
        (3.0, 3.0, {FULL, NULL}),
        (3.0, 1.0, {FULL, CONTEXT_ONLY}),
        (3.0, 2.0, {FULL, CONTEXT_ONLY, NULL}),
        (0.0, 2.0, {CONTEXT_ONLY, NULL}),
        (0.0, 1.0, {CONTEXT_ONLY}),
        (0.0, 0.0, {NULL}),
    ],
)
def test_only_the_branches_that_count_run(g_txt, g_ctx, branches):
    assert set(branch_weights(g_txt, g_ctx)) == branches


@pytest.mark.parametrize("has_text, has_context", list(itertools.product([True, False], repeat=2)))
@pytest.mark.parametrize("g_txt, g_ctx", [(3.0, 2.0), (1.0, 4.0), (0.5, 0.0)])
def test_merged_branches_change_nothing(predictions, has_text, has_context, g_txt, g_ctx):
    """What is absent makes two branches equal: leaving one out must give the formula's value."""
    if not has_text:
        predictions[FULL] = predictions[CONTEXT_ONLY]
    if not has_context:
        predictions[CONTEXT_ONLY] = predictions[NULL]
    if not has_text and not has_context:
        predictions[FULL] = predictions[NULL]
    weights = branch_weights(g_txt, g_ctx, has_text, has_context)
    full, context, null = predictions[FULL], predictions[CONTEXT_ONLY], predictions[NULL]
    expected = null + g_ctx * (context - null) + g_txt * (full - context)
    torch.testing.assert_close(guide(predictions, weights), expected, rtol=1e-5, atol=1e-5)
    assert sum(weights.values()) == pytest.approx(1.0)
