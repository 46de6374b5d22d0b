"""The ablations and the baseline as settings of the diffusion stage, one line of a config each.

`python -m research.training CONFIG.toml` is one training process of such a stage.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from context_diffusion.errors import ContextDiffusionError
from context_diffusion.model.context_diffusion import ContextDiffusion
from context_diffusion.model.reading import Reading
from context_diffusion.training.begin.first_model import freeze_unused, refuse_change
from context_diffusion.training.settings import DiffusionSettings, one_of, setting
from context_diffusion.training.stages.diffusion import DiffusionObjective, DiffusionStage

from .decoupled import decouple, is_decoupled
from .prompt_diffusion import ExampleEncoder, PromptDiffusion
from .t2i_adapter import T2IAdapter, new_adapter

READINGS = ("aggregation", "cross_attention", "context_hidden_state", "null_context")
LAYOUTS = ("controlnet", "t2i_adapter", "none")
BASELINES = ("none", "prompt_diffusion")


@dataclass(frozen=True)
class ResearchSettings(DiffusionSettings):
    """[diffusion] with the settings of the ablations and of the baseline.

    `context_dropout = 1` with `layout = "none"` trains text to image, with nothing behind the text in y.
    """

    cross_attention: str | None = setting(None, one_of("concatenated", "decoupled"), "keys and values of h^V")
    context_hidden_state: str | None = setting(None, one_of("last", "penultimate"), "the image encoder's that is read")
    null_context: str | None = setting(None, one_of("zeros", "black"), "what stands for no context")
    layout: str | None = setting(None, one_of(*LAYOUTS), "a new layout encoder's kind")
    baseline: str | None = setting(None, one_of(*BASELINES), "another model in the place of ours")


def build_model(parts: dict[str, Any], settings: ResearchSettings) -> ContextDiffusion:
    """The variant of the default model that the settings ask for.

    Args:
        parts: arguments of `ContextDiffusion`; the UNet and the layout encoder are changed in place.
        settings: of [diffusion].

    Raises:
        ContextDiffusionError: the baseline together with another change, or parts of `pretrained` that do not go in.
    """
    baseline, layout = settings.baseline or "none", settings.layout or "controlnet"
    asked = {name: getattr(settings, name) for name in READINGS}
    reading = Reading.of({name: value for name, value in asked.items() if value is not None})
    unet = parts["unet"]
    if is_decoupled(unet):
        raise ContextDiffusionError(
            f"[diffusion] pretrained = {settings.pretrained!r} has decoupled cross-attention: go on with it by "
            "start_from"
        )
    if settings.keep_layout:
        _check_kept(parts["layout_encoder"], layout, settings.pretrained)
    if baseline == "prompt_diffusion":
        if layout != "controlnet" or reading.changes:
            raise ContextDiffusionError(
                "[diffusion] baseline is 'prompt_diffusion', which has no visual context of its own and a ControlNet: "
                f"leave out {', '.join(reading.changes) or 'layout'}"
            )
        example_encoder = ExampleEncoder(unet.config.block_out_channels[0])
        return PromptDiffusion(**{**parts, "projector": None, "image_encoder": None}, example_encoder=example_encoder)
    if layout == "t2i_adapter":
        parts = {**parts, "layout_encoder": new_adapter(unet)}
    elif layout == "none":
        parts = {**parts, "layout_encoder": None}
    if reading.changes.get("cross_attention") == "decoupled":
        decouple(unet)
        if layout == "controlnet":
            decouple(parts["layout_encoder"])
    return ContextDiffusion(**parts, reading=reading)


def check_start(model: ContextDiffusion, settings: ResearchSettings) -> None:
    """Refuse a config that asks for another variant than the checkpoint it starts from."""
    own = {"aggregation": "mean", "cross_attention": "concatenated"}
    own |= {"context_hidden_state": "last", "null_context": "zeros", **model.reading.changes}
    own["layout"] = "controlnet"
    if model.layout_encoder is None:
        own["layout"] = "none"
    elif isinstance(model.layout_encoder, T2IAdapter):
        own["layout"] = "t2i_adapter"
    own["baseline"] = "prompt_diffusion" if isinstance(model, PromptDiffusion) else "none"
    for name, value in own.items():
        refuse_change(name, getattr(settings, name), value)


class TextObjective(DiffusionObjective):
    """Text to image: y is h^c alone."""

    def inputs(self, batch: dict) -> tuple[Tensor, Tensor | None]:
        return self.text(batch), self.layout(batch)


class PairObjective(DiffusionObjective):
    """The baseline: its context is one example pair, which joins the query's features."""

    def inputs(self, batch: dict) -> tuple[Tensor, Tensor | None]:
        text, layout = self.text(batch), self.layout(batch)
        pairs = self.model.example_encoder(batch["example_queries"], batch["images"][batch["examples"]])
        return text, layout + pairs[batch["rows"]] * (batch["context"] > 0).any(1).view(-1, 1, 1, 1)


class ResearchStage(DiffusionStage):
    """The diffusion stage of `ResearchSettings`."""

    build_model = staticmethod(build_model)
    check_start = staticmethod(check_start)

    def _reads_context(self) -> bool:
        return self.settings.context_dropout < 1

    def objective(self, model: ContextDiffusion) -> DiffusionObjective:
        if model.wants_context_queries:
            return PairObjective(model)
        return DiffusionObjective(model) if self._reads_context() else TextObjective(model)

    def freeze_unused(self, model: ContextDiffusion) -> None:
        """As the product's, and of the image encoder its last layer or all of it, where nothing reads that."""
        if model.image_encoder is None:
            return
        if not self._reads_context():
            for module in (model.image_encoder, model.projector):
                module.requires_grad_(False)
            return
        freeze_unused(model)
        if model.reading.changes.get("context_hidden_state") == "penultimate":
            vision = getattr(model.image_encoder, "vision_model", model.image_encoder)
            vision.encoder.layers[-1].requires_grad_(False)

    def more(self, generator: torch.Generator, usual: Tensor, others: Tensor, other: Tensor) -> dict[str, Tensor]:
        """The baseline's examples; each one's query is of the kind that the target's query is of."""
        if not self.module.model.wants_context_queries:
            return {}
        examples = draw_examples(len(usual), self.settings.members, generator)
        return {"examples": examples, "example_queries": torch.where(other, others[examples], usual[examples])}


def draw_examples(unique: int, members: int, generator: torch.Generator) -> Tensor:
    """The example of each picture: another one of its group, (unique,) positions among the batch's pictures.

    Args:
        unique: pictures in the batch, group after group.
        members: pictures of a group.
        generator: source of the choice.
    """
    position = torch.arange(unique)
    step = torch.randint(1, members, (unique,), generator=generator)
    return position - position % members + (position + step) % members


def _check_kept(layout_encoder: object, layout: str, path: str) -> None:
    """Refuse `keep_layout` where what is kept is no ControlNet, or another layout is asked for."""
    if isinstance(layout_encoder, T2IAdapter):
        raise ContextDiffusionError(
            f"[diffusion] pretrained = {path!r} has no ControlNet and keep_layout asks for it: leave keep_layout out"
        )
    if layout != "controlnet":
        raise ContextDiffusionError(
            f"[diffusion] keep_layout keeps the ControlNet of pretrained = {path!r} and layout is {layout!r}: "
            "leave one of them out"
        )


if __name__ == "__main__":
    from context_diffusion.training.__main__ import main

    from . import register

    register()
    sys.exit(main())
