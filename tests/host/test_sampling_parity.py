"""Twenty steps with context, query and prompt, with two samplers: our nodes in the host against our pipeline."""

from __future__ import annotations

import pytest
import torch

from .graph import SIZE, SamplingGraph, put_image, relative
from .server import Server

PROMPT, NEGATIVE, SEED = "full moon over our camp, East Greenland", "blue", 11


@pytest.fixture(scope="module", params=["lcm", "euler"])
def sampler(request: pytest.FixtureRequest):
    """The host's name of a sampler, and our pipeline with its own scheduler, which is `lcm`, or with a plain one."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    from context_diffusion.sampling.pipeline import ContextDiffusionPipeline

    scheduler = None if request.param == "lcm" else FlowMatchEulerDiscreteScheduler(shift=1.0)
    pipe = ContextDiffusionPipeline.from_single_file("emoji-128", dtype=torch.float32, scheduler=scheduler)
    pipe.set_progress_bar_config(disable=True)
    return request.param, pipe


@pytest.mark.parametrize("text, context", [(3.0, 3.0), (4.0, 2.0), (1.0, 3.0)])
def test_sampling_matches_the_pipeline(host_fp32: Server, sampler, text: float, context: float) -> None:
    from PIL import Image

    sampler_name, pipeline = sampler
    graph = SamplingGraph(host_fp32)
    graph.positive, graph.negative = graph.text(PROMPT), graph.text(NEGATIVE)
    graph.context_conditionings(context_seeds=(1, 2, 5))
    sampled = graph.ours(text, context, seed=SEED, steps=20, sampler_name=sampler_name)
    latent = graph.save(sampled[0])
    decoded = graph.save(graph.add("VAEDecode", samples=sampled[0], vae=graph.vae)[0])
    history = host_fp32.run(graph)

    def picture(seed: int) -> Image.Image:
        return Image.open(host_fp32.base / "input" / put_image(host_fp32, seed))

    # The host draws its noise from the global generator, seeded.
    noise = torch.randn(1, 8, SIZE // 8, SIZE // 8, generator=torch.Generator().manual_seed(SEED))
    settings = {
        "prompt": PROMPT, "negative_prompt": NEGATIVE, "context_images": [picture(seed) for seed in (1, 2, 5)],
        "query_image": picture(3), "latents": noise, "num_inference_steps": 20, "text_guidance": text,
        "context_guidance": context,
    }  # fmt: skip

    def make(output_type: str) -> torch.Tensor:
        # What a sampler draws between its steps, the host draws from the seed after the first noise's.
        return pipeline(**settings, output_type=output_type, generator=torch.Generator().manual_seed(SEED + 1)).images

    latents = make("latent")
    images = make("pt").permute(0, 2, 3, 1)

    assert relative(host_fp32.tensors(history, decoded)["value"], images) < 1e-3
    got = graph.read(history, latent)
    # Latents differ by the factor of the VAE alone, which one side takes off and the other does not.
    factor = (got * latents).sum() / latents.square().sum()
    assert relative(got / factor, latents) < 1e-3
    assert abs(factor.item() - 1) < 1e-3 or abs(factor.item() * pipeline.vae.config.scaling_factor - 1) < 1e-3
