"""The pipeline with a tiny VAE in place of a KL one: every way in and out."""

import json

import pytest
import torch

from context_diffusion.checkpoint.write import save_checkpoint
from context_diffusion.sampling.pipeline import ContextDiffusionPipeline

from ..tiny import taesd_vae, tiny_model

INPUTS = {"prompt": "a yellow moon", "num_inference_steps": 2}


def picture(seed, height=64, width=64):
    return torch.rand(3, height, width, generator=torch.Generator().manual_seed(seed))


def seeded():
    return torch.Generator().manual_seed(0)


@pytest.fixture(scope="module")
def pipe():
    model = tiny_model(prediction_type="flow")
    model.vae = taesd_vae().eval()
    pipe = ContextDiffusionPipeline.from_model(model)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@torch.no_grad()
def test_images_are_the_decoded_latents(pipe):
    inputs = {**INPUTS, "context_images": [picture(1)], "query_map": picture(3, 32, 96), "height": 32, "width": 96}
    latents = pipe(**inputs, generator=seeded(), output_type="latent").images
    images = pipe(**inputs, generator=seeded(), output_type="pt").images
    assert latents.shape == (1, 4, 4, 12) and images.shape == (1, 3, 32, 96)
    expected = pipe.vae.decoder.layers(3 * torch.tanh(latents / 0.7 / 3)).clamp(0, 1)
    torch.testing.assert_close(images, expected)


@torch.no_grad()
def test_image_to_image_starts_where_the_flow_puts_the_image(pipe):
    seen = []
    hook = pipe.unet.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    image, noise = picture(8), torch.randn(1, 4, 8, 8, generator=seeded())
    pipe(**{**INPUTS, "num_inference_steps": 10}, image=image, strength=0.3, latents=noise, output_type="latent")
    hook.remove()
    clean = pipe.vae.encoder.layers(image[None]) * 0.7
    assert len(seen) == 3
    torch.testing.assert_close(seen[0][:1], 0.7 * clean + 0.3 * noise, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("single_file", [False, True])
def test_save_and_load(tmp_path, pipe, single_file, caplog):
    if single_file:
        path = save_checkpoint(pipe.to_model(), tmp_path / "tiny.safetensors")
        loaded = ContextDiffusionPipeline.from_single_file(path)
    else:
        pipe.save_pretrained(tmp_path)
        assert json.loads((tmp_path / "model_index.json").read_text())["vae"] == ["diffusers", "AutoencoderTiny"]
        loaded = ContextDiffusionPipeline.from_pretrained(tmp_path)
    assert "Expected types" not in caplog.text
    loaded.set_progress_bar_config(disable=True)
    got, expected = (
        each(**INPUTS, image=picture(2), generator=seeded(), output_type="np").images for each in (loaded, pipe)
    )
    assert (got == expected).all()


@torch.no_grad()
def test_half_precision_and_slicing(pipe):
    from copy import deepcopy

    half = deepcopy(pipe).to(torch.bfloat16)
    half.set_progress_bar_config(disable=True)
    half.vae.enable_slicing()
    images = half(**INPUTS, image=picture(2), num_images_per_prompt=2, generator=seeded(), output_type="pt").images
    assert images.shape == (2, 3, 64, 64) and images.dtype == torch.float32
