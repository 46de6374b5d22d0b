"""A LoRA file in the host's own LoRA loader on our native MODEL and CLIP, against the same file in our pipeline."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from .graph import SIZE, SamplingGraph, put_image, relative
from .server import Server

# Steps of which the host's thousand noise levels are a multiple: it takes the nearest one of them.
PROMPT, SEED, STEPS, STRENGTH, RANK = "a red fox", 11, 5, 0.8, 4


@pytest.fixture
def lora(host_fp32: Server) -> Path:
    """Random changes of all that our LoRAs may hold: the UNet's transformers and the text encoder's layers."""
    from context_diffusion.checkpoint.lora import lora_names, save_lora
    from context_diffusion.checkpoint.read import load_checkpoint
    from context_diffusion.pretrained import find_model

    generator = torch.Generator().manual_seed(0)
    layers = {}
    for name, weight in lora_names(load_checkpoint(find_model("emoji-128"))).items():
        if "_attentions_" in name or "_layers_" in name:
            out, width = weight.flatten(1).shape
            up, down = torch.randn(out, RANK, generator=generator), torch.randn(RANK, width, generator=generator)
            layers[name] = 0.3 * up / width**0.5, down / RANK**0.5
    file = host_fp32.base / "models" / "loras" / "random.safetensors"
    save_lora(file, layers, {})
    return file


def test_the_host_s_lora_loader_makes_what_our_pipeline_makes(host_fp32: Server, lora: Path) -> None:
    from PIL import Image

    from context_diffusion.sampling.pipeline import ContextDiffusionPipeline

    graph = SamplingGraph(host_fp32)
    loaded = graph.add(
        "LoraLoader", model=graph.model, clip=graph.clip, lora_name=lora.name, strength_model=STRENGTH,
        strength_clip=STRENGTH,
    )  # fmt: skip
    graph.model, graph.clip = loaded[0], loaded[1]
    graph.positive, graph.negative = graph.text(PROMPT), graph.text("")
    graph.context_conditionings(context_seeds=(1, 2))
    sampled = graph.ours(3.0, 3.0, seed=SEED, steps=STEPS, sampler_name="lcm")
    decoded = graph.save(graph.add("VAEDecode", samples=sampled[0], vae=graph.vae)[0])
    history = host_fp32.run(graph)

    def picture(seed: int) -> Image.Image:
        return Image.open(host_fp32.base / "input" / put_image(host_fp32, seed))

    pipe = ContextDiffusionPipeline.from_single_file("emoji-128", dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)

    def make() -> torch.Tensor:
        # The host draws its first noise from the seed, and what a sampler draws between its steps from the next one.
        noise = torch.randn(1, 8, SIZE // 8, SIZE // 8, generator=torch.Generator().manual_seed(SEED))
        images = pipe(
            prompt=PROMPT, context_images=[picture(seed) for seed in (1, 2)], query_image=picture(3), latents=noise,
            num_inference_steps=STEPS, output_type="pt", generator=torch.Generator().manual_seed(SEED + 1),
        ).images  # fmt: skip
        return images.permute(0, 2, 3, 1)

    plain = make()
    pipe.load_lora(lora, STRENGTH)
    expected = make()
    got = host_fp32.tensors(history, decoded)["value"]
    assert relative(got, expected) < 1e-3
    assert relative(got, plain) > 0.05, "the LoRA changes nothing"
    pipe.load_lora(lora, -STRENGTH)
    assert relative(make(), plain) < 1e-3
