"""The ablations and the baseline as settings of the diffusion stage: one line of a config each."""

from __future__ import annotations

from typing import Any

from torch import nn

from ...errors import ContextDiffusionError
from ...model.context_diffusion import ContextDiffusion
from ...model.decoupled import decouple
from ...model.layout import LAYOUTS, is_adapter, new_adapter
from ...model.prompt_diffusion import ExampleEncoder
from ...model.variants import Variant

BASELINES = ("none", "prompt_diffusion")


def build_variant(parts: dict[str, Any], choices: dict[str, str | None]) -> dict[str, Any]:
    """The arguments of a `ContextDiffusion` that is a variant of the default one.

    Args:
        parts: the default's arguments; the UNet and the layout encoder are changed in place.
        choices: setting -> value, None where the config does not name it: `layout`, `baseline` and the entries of
            `Variant`.

    Raises:
        ContextDiffusionError: an unknown value, or the baseline together with another change.
    """
    chosen = {name: value for name, value in choices.items() if value is not None}
    baseline = _one_of("baseline", chosen.pop("baseline", "none"), BASELINES)
    layout = _one_of("layout", chosen.pop("layout", "controlnet"), LAYOUTS)
    variant = Variant(**chosen)
    unet = parts["unet"]
    if baseline == "prompt_diffusion":
        if layout != "controlnet" or variant.changes():
            raise ContextDiffusionError(
                "[diffusion] baseline is 'prompt_diffusion', which has no visual context of its own and a ControlNet: "
                f"leave out {', '.join(variant.changes()) or 'layout'}"
            )
        example_encoder = ExampleEncoder(unet.config.block_out_channels[0])
        return {**parts, "projector": None, "image_encoder": None, "example_encoder": example_encoder}
    if layout == "t2i_adapter":
        parts = {**parts, "layout_encoder": new_adapter(unet)}
    elif layout == "none":
        parts = {**parts, "layout_encoder": None}
    if variant.cross_attention == "decoupled":
        decouple(unet)
        if layout == "controlnet":
            decouple(parts["layout_encoder"])
    return {**parts, "variant": variant}


def check_variant(model: ContextDiffusion, choices: dict[str, str | None]) -> None:
    """Refuse a config that asks for another variant than the checkpoint it starts from."""
    own = {name: getattr(model.variant, name) for name in choices if hasattr(model.variant, name)}
    own["layout"] = _layout_of(model)
    own["baseline"] = "none" if model.example_encoder is None else "prompt_diffusion"
    for name, value in choices.items():
        if value is not None and value != own[name]:
            raise ContextDiffusionError(
                f"[diffusion] {name} is {value!r} and start_from is a model with {own[name]!r}: train it from its start"
            )


def freeze_unused(model: ContextDiffusion, reads_context: bool = True) -> None:
    """Weights that nothing in training reads: of the image encoder what is behind the hidden state in use.

    Args:
        model: the model.
        reads_context: false where every row is without context; image encoder and projector are left as they are.
    """
    if model.image_encoder is None:
        return
    if not reads_context:
        for module in (model.image_encoder, model.projector):
            module.requires_grad_(False)
        return
    vision = getattr(model.image_encoder, "vision_model", model.image_encoder)
    unused: list[nn.Module] = [vision.post_layernorm]
    if model.variant.context_hidden_state == "penultimate":
        unused.append(vision.encoder.layers[-1])
    for module in unused:
        module.requires_grad_(False)


def _layout_of(model: ContextDiffusion) -> str:
    if model.layout_encoder is None:
        return "none"
    return "t2i_adapter" if is_adapter(model.layout_encoder) else "controlnet"


def _one_of(name: str, value: str, choices: tuple[str, ...]) -> str:
    if value not in choices:
        raise ContextDiffusionError(f"[diffusion] {name} is {value!r}; choose one of {', '.join(choices)}")
    return value
