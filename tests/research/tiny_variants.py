"""The ablations and the baseline on the tiny model, and what tests go through one by one."""

import torch

from research.training import ResearchSettings, build_model

from ..core.tiny import tiny_model

# Name -> the settings of [diffusion] that make it.
VARIANTS = {
    "sum": {"aggregation": "sum"},
    "concat": {"aggregation": "concat"},
    "decoupled": {"cross_attention": "decoupled"},
    "penultimate": {"context_hidden_state": "penultimate"},
    "black": {"null_context": "black"},
    "t2i_adapter": {"layout": "t2i_adapter"},
    "prompt_diffusion": {"baseline": "prompt_diffusion"},
}


def tiny_variant(name, seed=0):
    """`tiny_model` of a flow as one of `VARIANTS`, with every new weight random."""
    model = tiny_model(seed, prediction_type="flow")
    parts = {
        part: getattr(model, part)
        for part in ("unet", "projector", "layout_encoder", "vae", "text_encoder", "tokenizer", "image_encoder")
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + 1)
        model = build_model(
            {**parts, "schedule": model.schedule, "info": model.info}, ResearchSettings(**VARIANTS[name])
        )
        for key, parameter in model.named_parameters():
            # Copies and zeros would hide what is used in another's place.
            if ".processor." in key or key.startswith("example_encoder.stem.conv_out"):
                torch.nn.init.normal_(parameter, std=0.2)
    return model.eval().requires_grad_(False)
