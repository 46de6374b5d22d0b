"""The training loss against eq. 2 written out by hand, with diffusers' own UNet and ControlNet calls."""

import math

import pytest
import torch

from context_diffusion.model.process import add_noise, diffusion_loss
from context_diffusion.model.visual_context import clip_preprocess
from context_diffusion.training.noise_levels import noise_levels
from context_diffusion.training.stages.diffusion import DiffusionObjective

from ..tiny import TEXT_WIDTH, tiny_model

LEVELS = torch.tensor([0.05, 0.5, 0.93])


def cumulative_alphas(start=0.00085, end=0.012, steps=1000):
    """The products of (1 - beta) of Stable Diffusion's schedule, in double precision."""
    betas = torch.linspace(math.sqrt(start), math.sqrt(end), steps, dtype=torch.float64) ** 2
    return torch.cumprod(1 - betas, 0)


def inputs(rows=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        "latents": torch.randn(rows, 4, 8, 8, generator=generator),
        "noise": torch.randn(rows, 4, 8, 8, generator=generator),
        "y": torch.randn(rows, 77 + 5, TEXT_WIDTH, generator=generator),
        "query": torch.rand(rows, 3, 64, 64, generator=generator),
    }


def plain_prediction(model, z_t, t, y, query, strength=1.0):
    """f(z_t, t, y, q) by diffusers' documented calls and nothing of ours."""
    residuals = model.layout_encoder(
        z_t, t, encoder_hidden_states=y, controlnet_cond=query, conditioning_scale=strength
    )
    return model.unet(
        z_t,
        t,
        encoder_hidden_states=y,
        down_block_additional_residuals=residuals.down_block_res_samples,
        mid_block_additional_residual=residuals.mid_block_res_sample,
    ).sample


def noised_by_hand(kind, x, eps, level):
    """z_t, target and timestep of one sample, from the formulas of the three kinds."""
    if kind == "flow":
        return (1 - level) * x + level * eps, eps - x, 1000 * level
    t = int(level * 1000)
    alpha = float(cumulative_alphas()[t])
    z_t = math.sqrt(alpha) * x + math.sqrt(1 - alpha) * eps
    if kind == "epsilon":
        return z_t, eps, t
    return z_t, math.sqrt(alpha) * eps - math.sqrt(1 - alpha) * x, t


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "flow"])
@torch.no_grad()
def test_loss_is_equation_2_written_out(kind):
    model = tiny_model(prediction_type=kind)
    given = inputs()
    losses = diffusion_loss(model, levels=LEVELS, **given)
    assert losses.shape == (3,)
    for row, level in enumerate(LEVELS.tolist()):
        x, eps, y, query = (given[name][row : row + 1] for name in ("latents", "noise", "y", "query"))
        z_t, target, t = noised_by_hand(kind, x, eps, level)
        prediction = plain_prediction(model, z_t, torch.tensor([t]), y, query)
        expected = ((target - prediction) ** 2).sum() / target.numel()
        torch.testing.assert_close(losses[row], expected, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_the_perfect_prediction_undoes_the_noise():
    """From z_t and the target of each kind the clean latents come back."""
    given = inputs()
    x, eps = given["latents"], given["noise"]
    for kind in ("epsilon", "v_prediction", "flow"):
        schedule = tiny_model(prediction_type=kind).schedule
        z_t, target, t = add_noise(x, eps, LEVELS, schedule)
        if kind == "flow":
            clean = z_t - LEVELS.view(-1, 1, 1, 1) * target
        else:
            alpha = cumulative_alphas()[t].float().view(-1, 1, 1, 1)
            if kind == "epsilon":
                clean = (z_t - (1 - alpha).sqrt() * target) / alpha.sqrt()
            else:
                clean = alpha.sqrt() * z_t - (1 - alpha).sqrt() * target
        torch.testing.assert_close(clean, x, rtol=1e-4, atol=1e-4)


def test_levels_at_the_ends_stay_in_the_schedule():
    given = inputs(2)
    schedule = tiny_model().schedule
    _, _, t = add_noise(given["latents"], given["noise"], torch.tensor([0.0, 1.0]), schedule)
    assert t.tolist() == [0, 999]


@torch.no_grad()
def test_zero_terminal_snr_leaves_nothing_but_noise_at_the_last_step():
    given = inputs(1)
    schedule = tiny_model(prediction_type="v_prediction", rescale_betas_zero_snr=True).schedule
    z_t, target, _ = add_noise(given["latents"], given["noise"], torch.tensor([1.0]), schedule)
    torch.testing.assert_close(z_t, given["noise"], atol=1e-4, rtol=0)
    torch.testing.assert_close(target, -given["latents"], atol=1e-4, rtol=0)


@torch.no_grad()
def test_the_shared_stem_changes_nothing():
    """Features from `encode_query` and the query itself give what diffusers' plain call gives."""
    model = tiny_model(prediction_type="flow")
    given = inputs()
    z_t, t = given["latents"], 1000 * LEVELS
    expected = plain_prediction(model, z_t, t, given["y"], given["query"])
    for query in (given["query"], model.encode_query(given["query"])):
        torch.testing.assert_close(model.predict(z_t, t, given["y"], query), expected, rtol=0, atol=1e-6)
    # The hook that replaces the stem is gone afterwards.
    torch.testing.assert_close(plain_prediction(model, z_t, t, given["y"], given["query"]), expected, rtol=0, atol=0)
    # And the query does matter, so that the comparison says something.
    assert (model.predict(z_t, t, given["y"]) - expected).abs().max() > 1e-3


@torch.no_grad()
def test_layout_strength_is_each_rows_own():
    """0 in a row is no ControlNet in that row; a fraction scales that row's residuals alone."""
    model = tiny_model(prediction_type="flow")
    given = inputs()
    z_t, t = given["latents"], 1000 * LEVELS
    strength = torch.tensor([1.0, 0.0, 0.4]).view(-1, 1, 1, 1)
    mixed = model.predict(z_t, t, given["y"], given["query"], strength)
    for row, value in enumerate([1.0, None, 0.4]):
        part = [tensor[row : row + 1] for tensor in (z_t, t, given["y"], given["query"])]
        if value is None:
            expected = model.unet(*part[:3]).sample
        else:
            expected = plain_prediction(model, *part, strength=value)
        torch.testing.assert_close(mixed[row : row + 1], expected, rtol=1e-5, atol=1e-5)


def training_batch(model, seed=1):
    """Three rows over two pictures and a group's third; one row without text, one without context and query."""
    generator = torch.Generator().manual_seed(seed)
    ids = model.tokenizer(
        ["", "a yellow moon", "a red flag", "camping"], padding="max_length", max_length=77, return_tensors="pt"
    ).input_ids
    return {
        "rows": torch.tensor([0, 1, 1]),
        "images": torch.rand(3, 3, 64, 64, generator=generator),
        "queries": torch.rand(3, 3, 64, 64, generator=generator),
        "latents": torch.randn(3, 4, 8, 8, generator=generator),
        "ids": ids,
        "text": torch.tensor([1, 0, 2]),
        "context": torch.tensor([[0, 0.5, 0.5], [1.0, 0, 0], [0, 0, 0]]),
        "layout": torch.tensor([1.0, 1.0, 0.0]),
        "noise": torch.randn(3, 4, 8, 8, generator=generator),
        "levels": LEVELS,
    }


def test_a_whole_training_step_is_equation_2_written_out():
    """Encoders, mean over context, projector, [h^c, h^V], null branches and loss; and the gradients of it all."""
    model = tiny_model(prediction_type="flow")
    batch = training_batch(model)
    trained = [model.unet, model.layout_encoder, model.projector, model.text_encoder, model.image_encoder]
    parameters = [parameter for part in trained for parameter in part.requires_grad_(True).parameters()]
    loss, numbers = DiffusionObjective(model)(batch)
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)

    terms = []
    for row, picture in enumerate([0, 1, 1]):
        text = model.text_encoder(batch["ids"][[[1], [0], [2]][row]]).last_hidden_state
        members = [[1, 2], [0], []][row]
        if members:
            pixels = clip_preprocess(batch["images"][members], 32)
            tokens = [model.image_encoder(pixel_values=one[None]).last_hidden_state for one in pixels]
            context = model.projector.linear(sum(tokens) / len(tokens))
        else:
            context = torch.zeros(1, 5, TEXT_WIDTH)
        x, eps, s = batch["latents"][picture][None], batch["noise"][row][None], float(LEVELS[row])
        z_t, t, y = (1 - s) * x + s * eps, torch.tensor([1000 * s]), torch.cat([text, context], dim=1)
        if row == 2:
            prediction = model.unet(z_t, t, y).sample
        else:
            prediction = plain_prediction(model, z_t, t, y, batch["queries"][picture][None])
        terms.append(((eps - x) - prediction).square().mean())
    expected = sum(terms) / 3
    by_hand = torch.autograd.grad(expected, parameters, allow_unused=True)

    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(numbers["loss"], expected.detach(), rtol=1e-5, atol=1e-6)
    scale = max(float(gradient.abs().max()) for gradient in by_hand if gradient is not None)
    for ours, theirs in zip(gradients, by_hand, strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5 * scale)


def test_noise_levels_are_stratified_and_repeatable():
    count = 64
    levels = noise_levels(count, torch.Generator().manual_seed(0), mean=0.4, uniform=0.0)
    assert levels.shape == (count,) and levels.min() > 0 and levels.max() < 1
    # Back through the logistic and the normal distribution: one level in each of `count` equal parts.
    quantiles = torch.special.ndtr(torch.logit(levels) - 0.4)
    assert sorted((quantiles * count).floor().int().tolist()) == list(range(count))
    even = noise_levels(count, torch.Generator().manual_seed(0), uniform=1.0)
    assert sorted((even * count).floor().int().tolist()) == list(range(count))
    # Not in order: a row's place says nothing of its level.
    assert not torch.equal(levels, levels.sort().values)
    assert torch.equal(levels, noise_levels(count, torch.Generator().manual_seed(0), mean=0.4, uniform=0.0))
    assert not torch.equal(levels, noise_levels(count, torch.Generator().manual_seed(1), mean=0.4, uniform=0.0))


def test_noise_levels_follow_their_mixture():
    levels = noise_levels(40_000, torch.Generator().manual_seed(0), mean=0.4, uniform=0.2)
    for s in (0.1, 0.3, 0.5, 0.7, 0.9):
        logistic_normal = 0.5 * (1 + math.erf((math.log(s / (1 - s)) - 0.4) / math.sqrt(2)))
        share = float((levels < s).float().mean())
        assert abs(share - (0.8 * logistic_normal + 0.2 * s)) < 0.01
