"""What the paper's model is compared with, and the product does not need: the ablations and Prompt Diffusion.

Each is a part with the interface of the product's own, attached by `register`; this room may import all of
`context_diffusion`, and nothing imports it. `python -m research COMMAND` is `context-diffusion COMMAND` with these
parts known.
"""

from __future__ import annotations


def register() -> None:
    """Make the parts known to checkpoints, pipelines and training. Once is enough; again changes nothing."""
    from context_diffusion.checkpoint.parts import PARTS, register_class, register_fit, register_part
    from context_diffusion.cli import train
    from context_diffusion.model.reading import register_reading
    from context_diffusion.training.__main__ import STAGE_CLASSES
    from context_diffusion.training.settings import SETTINGS

    from . import context, decoupled, prompt_diffusion, t2i_adapter
    from .training import ResearchSettings

    if "example_encoder" in PARTS:
        return
    register_reading(
        "cross_attention",
        {
            "concatenated": {},
            "decoupled": {
                "attended": decoupled.split,
                "prepare": decoupled.decouple,
                "check": decoupled.check_decoupled,
            },
        },
    )
    register_reading("context_hidden_state", {"last": {}, "penultimate": {"image_tokens": context.penultimate_tokens}})
    register_reading("null_context", {"zeros": {}, "black": {"null_context": context.black_context}})
    register_class("layout_encoder", t2i_adapter.T2IAdapter)
    register_fit(t2i_adapter.misfits)
    register_part(
        "example_encoder",
        prompt_diffusion.ExampleEncoder,
        ("channels", "widths"),
        prompt_diffusion.PromptDiffusion,
    )
    register_fit(prompt_diffusion.misfits)
    SETTINGS["diffusion"] = ResearchSettings
    STAGE_CLASSES["diffusion"] = ("research.training", "ResearchStage")
    train.PROCESS = "research.training"
