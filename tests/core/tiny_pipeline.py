"""A tiny pipeline and inputs for it."""

import torch

from context_diffusion.sampling.pipeline import ContextDiffusionPipeline

from .tiny import tiny_model


def picture(seed, height=64, width=64):
    return torch.rand(3, height, width, generator=torch.Generator().manual_seed(seed))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def make_pipe(**schedule):
    pipe = ContextDiffusionPipeline.from_model(tiny_model(**schedule))
    pipe.set_progress_bar_config(disable=True)
    return pipe


INPUTS = {
    "prompt": "a yellow moon",
    "context_images": [picture(1, 40, 50), picture(2)],
    "query_map": picture(3),
}


def run(pipe, **changes):
    inputs = {**INPUTS, "num_inference_steps": 2, "generator": seeded(), "output_type": "latent", **changes}
    return pipe(**inputs).images
