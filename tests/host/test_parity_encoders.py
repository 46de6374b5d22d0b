"""CLIP, CLIP_VISION, STYLE_MODEL and VAE in fp32 on a real server against the modules of the same file."""

from __future__ import annotations

import pytest
import torch

from context_diffusion.model.visual_context import clip_preprocess

from .native import NAMES, Native, relative
from .server import Server

TOLERANCE = 1e-4
PROMPTS = ("Full moon over our camp, East Greenland", "", "line art, thick outlines")


@pytest.fixture(scope="module")
def native(host_fp32: Server, request: pytest.FixtureRequest) -> Native:
    return Native(host_fp32, request.param)


@torch.no_grad()
@pytest.mark.parametrize("native", NAMES, indirect=True)
def test_clip(native: Native) -> None:
    prompt, loader = native.graph()
    probes = [
        prompt.add("ProbeSave", value=prompt.add("CLIPTextEncode", clip=loader[1], text=text)[0]) for text in PROMPTS
    ]
    history = native.server.run(prompt)
    for text, probe in zip(PROMPTS, probes, strict=True):
        found = native.server.tensors(history, probe)
        assert relative(found["0.0"], native.core.encode_prompts([text])) < TOLERANCE, text


@torch.no_grad()
@pytest.mark.parametrize("native", NAMES, indirect=True)
def test_clip_vision_and_style_model(native: Native) -> None:
    side = native.core.image_encoder.config.image_size
    prompt, loader = native.graph()
    # Of the encoder's own size: what a resize does in two releases of torch is not in question here.
    image = prompt.add("ProbeImage", seed=1, batch=2, height=side, width=side, channels=3, kind="plain")
    seen = prompt.add("ProbeSave", value=image[0])
    encoded = prompt.add("CLIPVisionEncode", clip_vision=loader[3], image=image[0], crop="center")
    vision = prompt.add("ProbeSave", value=encoded[0])
    text = prompt.add("CLIPTextEncode", clip=loader[1], text="")
    styled = prompt.add(
        "StyleModelApply", conditioning=text[0], style_model=loader[4], clip_vision_output=encoded[0], strength=1.0,
        strength_type="multiply",
    )  # fmt: skip
    style = prompt.add("ProbeSave", value=styled[0])
    history = native.server.run(prompt)
    images = native.server.tensors(history, seen)["value"].movedim(-1, 1)
    expected = native.core.image_encoder(pixel_values=clip_preprocess(images, side), output_hidden_states=True)
    found = native.server.tensors(history, vision)
    assert relative(found["last_hidden_state"], expected.last_hidden_state) < TOLERANCE
    assert relative(found["image_embeds"], expected.pooler_output) < TOLERANCE
    assert relative(found["penultimate_hidden_states"], expected.hidden_states[-2]) < TOLERANCE
    tokens = native.core.projector(expected.last_hidden_state).flatten(0, 1)[None]
    assert relative(native.server.tensors(history, style)["0.0"][:, 77:], tokens) < TOLERANCE


@torch.no_grad()
@pytest.mark.parametrize("native", NAMES, indirect=True)
def test_vae(native: Native) -> None:
    prompt, loader = native.graph()
    image = prompt.add("ProbeImage", seed=2, batch=2, height=64, width=96, channels=3, kind="plain")
    encoded = prompt.add("VAEEncode", pixels=image[0], vae=loader[2])
    decoded = prompt.add("VAEDecode", samples=encoded[0], vae=loader[2])
    probes = [prompt.add("ProbeSave", value=node[0]) for node in (image, encoded, decoded)]
    history = native.server.run(prompt)
    found = [native.server.tensors(history, probe) for probe in probes]
    images, latents = found[0]["value"].movedim(-1, 1), found[1]["samples"]
    core, config = native.core, native.core.vae.config
    # The native VAE speaks of unscaled latents, and the MODEL's latent format scales them.
    shift = config.get("shift_factor") or 0.0
    assert relative((latents - shift) * config.scaling_factor, core.encode_images(images)) < TOLERANCE
    expected = core.decode_latents((latents - shift) * config.scaling_factor).movedim(1, -1)
    assert relative(found[2]["value"], expected) < TOLERANCE
