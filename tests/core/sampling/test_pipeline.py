"""Sampling against loops written out by hand, and what the UNet and the layout encoder are asked."""

import hashlib
import math
import os
import subprocess
import sys
import weakref
from pathlib import Path

import diffusers
import pytest
import torch
from PIL import Image

from context_diffusion.errors import ContextDiffusionError
from context_diffusion.images import image_from_pil, to_pil
from context_diffusion.maps import make_map
from context_diffusion.model.visual_context import clip_preprocess
from context_diffusion.sampling import inputs as pipeline_inputs
from context_diffusion.sampling.pipeline import ContextDiffusionPipeline

from ..tiny import tiny_model
from ..tiny_pipeline import INPUTS, make_pipe, picture, run, seeded

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def pipe():
    """For tests that leave it as it was."""
    return make_pipe(prediction_type="flow")


@pytest.fixture
def calls(pipe):
    """Batch sizes and lengths of y of every UNet call, and how often the layout encoder ran."""
    seen = {"unet": [], "y": [], "layout": 0}

    def on_unet(module, args):
        seen["unet"].append(len(args[0]))
        seen["y"].append(args[2].detach().clone())

    def on_layout(module, args, kwargs):
        seen["layout"] += 1

    hooks = [
        pipe.unet.register_forward_pre_hook(on_unet),
        pipe.layout_encoder.register_forward_pre_hook(on_layout, with_kwargs=True),
    ]
    yield seen
    for hook in hooks:
        hook.remove()


def by_hand(model, z, t, prompt, contexts, query, g_txt, g_ctx):
    """The guided prediction, all three branches one after the other, from the transformers models alone."""

    def text(words):
        tokens = model.tokenizer(words, padding="max_length", max_length=77, return_tensors="pt")
        return model.text_encoder(tokens.input_ids).last_hidden_state

    tokens = []
    for image in contexts:
        mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(1, 3, 1, 1)
        std = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(1, 3, 1, 1)
        pixels = ((image[None] * 255).round() / 255 - mean) / std
        tokens.append(model.image_encoder(pixel_values=pixels).last_hidden_state)
    linear = model.projector.linear
    context = torch.stack(tokens).mean(0) @ linear.weight.T + linear.bias

    def predict(c, v):
        y = torch.cat([c, v], dim=1)
        down, mid = model.layout_encoder(z, t, y, query[None], return_dict=False)
        return model.unet(z, t, y, down_block_additional_residuals=down, mid_block_additional_residual=mid).sample

    nothing = torch.zeros_like(context)
    null, visual = predict(text(""), nothing), predict(text(""), context)
    full = predict(text(prompt), context)
    return null + g_ctx * (visual - null) + g_txt * (full - visual)


@torch.no_grad()
@pytest.mark.parametrize("stochastic", [True, False])
@pytest.mark.parametrize("g_txt, g_ctx", [(3.0, 3.0), (4.0, 1.5), (1.0, 1.0)])
def test_flow_equals_steps_by_hand(g_txt, g_ctx, stochastic):
    """Steps with new noise, a model's own way, and Euler steps by the user's scheduler.

    With g_txt = g_ctx the pipeline runs two branches, the hand all three.
    """
    model = tiny_model(prediction_type="flow")
    contexts = [picture(5, 32, 32), picture(6, 32, 32)]
    start = torch.randn(1, 4, 8, 8, generator=seeded())
    z, steps, noise = start, 4, seeded()
    for i in range(steps):
        s, s_next = 1 - i / steps, 1 - (i + 1) / steps
        velocity = by_hand(model, z, 1000 * s, "a tent", contexts, picture(3), g_txt, g_ctx)
        if stochastic:
            z = (1 - s_next) * (z - s * velocity) + s_next * torch.randn(1, 4, 8, 8, generator=noise)
        else:
            z = z + (s_next - s) * velocity
    scheduler = None if stochastic else diffusers.FlowMatchEulerDiscreteScheduler(shift=1.0)
    pipe = ContextDiffusionPipeline.from_model(model, scheduler)
    pipe.set_progress_bar_config(disable=True)
    got = run(
        pipe,
        prompt="a tent",
        context_images=contexts,
        latents=start,
        num_inference_steps=steps,
        text_guidance=g_txt,
        context_guidance=g_ctx,
    )
    torch.testing.assert_close(got, z, rtol=1e-5, atol=2e-5)


@torch.no_grad()
@pytest.mark.parametrize("steps, times", [(1, [1]), (4, [751, 501, 251, 1])])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_diffusion_equals_ddim_steps_by_hand(prediction_type, steps, times):
    model = tiny_model(prediction_type=prediction_type)
    contexts = [picture(5, 32, 32)]
    betas = torch.linspace(math.sqrt(0.00085), math.sqrt(0.012), 1000, dtype=torch.float64) ** 2
    alphas = torch.cumprod(1 - betas, 0)
    start = torch.randn(1, 4, 8, 8, generator=seeded())
    z = start
    for t in times:
        a, a_next = alphas[t].item(), alphas[max(t - 1000 // steps, 0)].item()
        out = by_hand(model, z, t, "a tent", contexts, picture(3), 2.0, 1.5)
        if prediction_type == "epsilon":
            clean, noise = (z - math.sqrt(1 - a) * out) / math.sqrt(a), out
        else:
            clean = math.sqrt(a) * z - math.sqrt(1 - a) * out
            noise = math.sqrt(a) * out + math.sqrt(1 - a) * z
        z = math.sqrt(a_next) * clean + math.sqrt(1 - a_next) * noise
    pipe = ContextDiffusionPipeline.from_model(model)
    pipe.set_progress_bar_config(disable=True)
    got = run(
        pipe,
        prompt="a tent",
        context_images=contexts,
        latents=start,
        num_inference_steps=steps,
        text_guidance=2.0,
        context_guidance=1.5,
    )
    torch.testing.assert_close(got, z, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "changes, batch",
    [
        ({}, 2),
        ({"text_guidance": 4.0}, 3),
        ({"text_guidance": 1.0, "context_guidance": 1.0}, 1),
        ({"context_guidance": 1.0}, 2),
        ({"context_images": None, "context_guidance": 5.0}, 2),
        ({"prompt": None, "text_guidance": 5.0}, 2),
        ({"prompt": None, "context_images": None}, 1),
        ({"prompt": ["a", "b"], "text_guidance": 4.0}, 6),
        ({"num_images_per_prompt": 2}, 4),
    ],
)
def test_branches_share_one_unet_call_a_step(pipe, calls, changes, batch):
    run(pipe, **changes)
    assert calls["unet"] == [batch] * 2
    assert calls["layout"] == 2


def test_branches_of_other_lengths_run_apart(pipe, calls):
    embeds = torch.randn(1, 20, 32, generator=seeded())
    run(pipe, negative_prompt_embeds=embeds, text_guidance=4.0)
    assert calls["unet"] == [1, 2] * 2  # the prompt alone; the two branches on the negative together
    assert [y.shape[1] for y in calls["y"]] == [77 + 5, 20 + 5] * 2


@pytest.mark.parametrize(
    "changes, layouts",
    [
        ({"layout_strength": 0.0}, 0),
        ({"layout_start": 0.5, "layout_end": 0.5}, 0),
        ({"layout_start": 0.8, "layout_end": 0.2}, 0),
        ({"layout_end": 0.5}, 2),
        ({"layout_start": 0.25}, 3),
        ({"query_map": None}, 0),
    ],
)
def test_layout_runs_where_it_is_heard(pipe, calls, changes, layouts):
    run(pipe, num_inference_steps=4, **changes)
    assert calls["layout"] == layouts and len(calls["unet"]) == 4


def test_layout_off_equals_no_query(pipe):
    nothing = run(pipe, query_map=None)
    assert torch.equal(run(pipe, layout_strength=0.0), nothing)
    assert torch.equal(run(pipe, layout_start=0.6, layout_end=0.6), nothing)
    assert not torch.allclose(run(pipe), nothing, atol=1e-3)


def test_no_context_equals_zero_tokens(pipe, calls):
    without = run(pipe, context_images=None)
    assert all(not y[:, 77:].any() and y.shape[1] == 77 + 5 for y in calls["y"])
    assert torch.equal(run(pipe, context_images=[]), without)
    given = run(pipe, context_images=None, context_embeds=torch.zeros(1, 5, 32))
    torch.testing.assert_close(given, without, rtol=0, atol=1e-6)
    assert not torch.allclose(run(pipe), without, atol=1e-3)


def test_each_input_matters(pipe):
    base = run(pipe)
    for changes in (
        {"prompt": "a red flag"},
        {"negative_prompt": "a red flag"},
        {"context_images": [picture(9)]},
        {"context_weights": [1.0, 9.0]},
        {"query_map": picture(9)},
        {"text_guidance": 5.0},
        {"context_guidance": 5.0},
        {"aggregation": "concat"},
        {"layout_strength": 0.3},
        {"generator": seeded(1)},
    ):
        assert not torch.allclose(run(pipe, **changes), base, atol=1e-4), changes


def test_context_images_average_whatever_their_sizes(pipe):
    one = run(pipe, context_images=[picture(1, 40, 50)])
    many = run(pipe, context_images=[picture(1, 40, 50)] * 9)
    torch.testing.assert_close(many, one, rtol=0, atol=1e-5)
    first = run(pipe, context_weights=[1.0, 0.0])
    torch.testing.assert_close(first, one, rtol=0, atol=1e-5)
    swapped = run(pipe, context_images=INPUTS["context_images"][::-1])
    torch.testing.assert_close(swapped, run(pipe), rtol=0, atol=1e-5)


def test_large_photos_are_cropped_one_by_one(pipe, monkeypatch):
    """At no time are two of them decoded, none is decoded twice, and the encoder sees what it always saw."""
    photos = [to_pil(picture(seed, 90, 120)) for seed in range(6)]
    alive, most, decoded = weakref.WeakSet(), [], []

    def watched(pil):
        image = image_from_pil(pil)
        alive.add(image)
        most.append(len(alive))
        decoded.append(pil)
        return image

    monkeypatch.setattr(pipeline_inputs, "image_from_pil", watched)
    got = run(pipe, context_images=photos)
    assert decoded == photos and max(most) <= 2  # the next is decoded before the one before is let go
    whole = torch.stack([image_from_pil(photo) for photo in photos])
    seen = []
    hook = pipe.image_encoder.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["pixel_values"]), with_kwargs=True
    )
    context = pipe.encode_context(photos)
    hook.remove()
    assert torch.equal(torch.cat(seen), clip_preprocess(whole, pipe.image_encoder.config.image_size))
    assert torch.equal(got, run(pipe, context_images=None, context_embeds=context))
    rows = run(pipe, context_images=[photos[:1], photos[1:]], context_weights=[[2.0], [1.0] * 5])
    expected = run(pipe, context_images=[list(whole[:1]), whole[1:]], context_weights=[[2.0], [1.0] * 5])
    assert torch.equal(rows, expected)


def test_query_image_goes_through_its_map_at_the_size_of_the_output(pipe):
    image = picture(4)
    expected = run(pipe, query_map=make_map(image[None], "canny"))
    assert torch.equal(run(pipe, query_map=None, query_image=image, map_name="canny"), expected)
    wide = torch.cat([torch.zeros(3, 64, 32), image, torch.zeros(3, 64, 32)], dim=2)
    assert torch.equal(run(pipe, query_map=None, query_image=wide, map_name="canny"), expected)
    assert torch.equal(run(pipe, query_map=None, query_image=image), run(pipe, query_map=image))


@pytest.mark.parametrize("prediction_type", ["flow", "epsilon"])
def test_batch_of_four_equals_four_singles(prediction_type):
    pipe = make_pipe(prediction_type=prediction_type)
    rows = [
        {"prompt": "a moon", "context_images": [picture(1)], "query_map": picture(11)},
        {"prompt": "", "context_images": [picture(2), picture(3, 40, 70)], "query_map": picture(12)},
        {"prompt": "camping", "context_images": [], "query_map": picture(13)},
        {"prompt": "very long " * 100, "context_images": [picture(5)] * 2, "query_map": picture(14)},
    ]
    guidance = {"text_guidance": 4.0, "context_guidance": 2.0, "output_type": "pt"}
    singles = [run(pipe, **row, **guidance, generator=seeded(i)) for i, row in enumerate(rows)]
    lists = {name: [row[name] for row in rows] for name in rows[0]}
    together = run(pipe, **lists, **guidance, generator=[seeded(i) for i in range(4)])
    assert together.shape == (4, 3, 64, 64)
    torch.testing.assert_close(together, torch.cat(singles), rtol=0, atol=1e-4)


def test_embeddings_stand_in_for_what_they_encode(pipe):
    prompt_embeds, negative = pipe.encode_prompt("a yellow moon", "thick outlines")
    context_embeds = pipe.encode_context(INPUTS["context_images"])
    expected = run(pipe, negative_prompt="thick outlines")
    got = run(
        pipe,
        prompt=None,
        context_images=None,
        prompt_embeds=prompt_embeds,
        negative_prompt_embeds=negative,
        context_embeds=context_embeds,
    )
    assert torch.equal(got, expected)


def test_size(pipe):
    images = run(pipe, height=32, width=96, output_type="pt")
    assert images.shape == (1, 3, 32, 96)
    assert run(pipe, latents=torch.randn(1, 4, 6, 10)).shape == (1, 4, 6, 10)


@pytest.mark.parametrize("sides", [{}, {"height": 32}, {"width": 96}])
def test_a_unet_that_names_no_size_needs_one(sides):
    pipe = make_pipe(prediction_type="flow")
    pipe.unet.register_to_config(sample_size=None)
    with pytest.raises(ContextDiffusionError, match="no sample_size: give height and width"):
        run(pipe, **sides)
    assert run(pipe, height=32, width=96).shape == (1, 4, 4, 12)
    assert run(pipe, latents=torch.randn(1, 4, 6, 10)).shape == (1, 4, 6, 10)


def test_image_to_image_starts_where_the_flow_puts_the_image():
    pipe = make_pipe(prediction_type="flow")
    seen = []
    pipe.unet.register_forward_pre_hook(lambda module, args: seen.append((args[0], float(args[1]))))
    image, noise = picture(8), torch.randn(1, 4, 8, 8, generator=seeded())
    clean = pipe.vae.encode(image[None] * 2 - 1).latent_dist.mean * pipe.vae.config.scaling_factor
    run(pipe, image=image, strength=0.3, num_inference_steps=10, latents=noise)
    assert len(seen) == 3
    z, t = seen[0]
    assert t == pytest.approx(300)
    torch.testing.assert_close(z[:1], 0.7 * clean + 0.3 * noise, rtol=1e-4, atol=1e-4)
    seen.clear()
    run(pipe, image=image, strength=1.0, num_inference_steps=10, latents=noise)
    assert len(seen) == 10
    torch.testing.assert_close(seen[0][0][:1], noise, rtol=1e-5, atol=1e-5)


def test_image_to_image_starts_where_the_diffusion_puts_the_image():
    pipe = make_pipe(prediction_type="epsilon")
    seen = []
    pipe.unet.register_forward_pre_hook(lambda module, args: seen.append((args[0], int(args[1]))))
    image, noise = picture(8), torch.randn(1, 4, 8, 8, generator=seeded())
    clean = pipe.vae.encode(image[None] * 2 - 1).latent_dist.mean * pipe.vae.config.scaling_factor
    run(pipe, image=image, strength=0.5, num_inference_steps=4, latents=noise)
    betas = torch.linspace(math.sqrt(0.00085), math.sqrt(0.012), 1000) ** 2
    z, t = seen[0]
    a = torch.cumprod(1 - betas, 0)[t]
    assert len(seen) == 2 and t == 251
    torch.testing.assert_close(z[:1], a.sqrt() * clean + (1 - a).sqrt() * noise, rtol=1e-4, atol=1e-4)


def test_same_seed_same_bytes_in_two_processes():
    code = (
        "import hashlib; from tests.core.tiny_pipeline import make_pipe, run; "
        "images = run(make_pipe(prediction_type='flow'), output_type='pil'); "
        "print(hashlib.sha256(images[0].tobytes()).hexdigest())"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code]
    options = {"cwd": ROOT, "env": environment, "capture_output": True, "text": True, "check": True}
    digests = [subprocess.run(command, **options).stdout.strip() for _ in range(2)]
    assert digests[0] == digests[1] and len(digests[0]) == len(hashlib.sha256().hexdigest())


def test_gradients_stay_off_and_pil_comes_out(pipe):
    images = run(pipe, output_type="pil", context_images=[Image.new("RGB", (50, 30), "red")])
    assert [image.size for image in images] == [(64, 64)] and images[0].mode == "RGB"
    assert not run(pipe).requires_grad
