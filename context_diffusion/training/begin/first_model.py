"""The model that the diffusion stage begins with: a new one, a new one around a trained UNet, or a trained one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...checkpoint.read import load_checkpoint
from ...checkpoint.tokenizer import tokenizer_from_json
from ...errors import ContextDiffusionError
from ...model.context_diffusion import ContextDiffusion
from ...model.reading import Reading
from ...model.visual_context import ContextProjector
from ...pretrained import find_model
from ..settings import DiffusionSettings
from .attention import attention_of, block_types, with_attention, within
from .vae import load_vae


def build_model(parts: dict[str, Any], settings: DiffusionSettings) -> ContextDiffusion:
    """The model that a new run trains; `parts` are arguments of `ContextDiffusion`."""
    aggregation = settings.aggregation
    return ContextDiffusion(**parts, reading=Reading.of({} if aggregation is None else {"aggregation": aggregation}))


def check_start(model: ContextDiffusion, settings: DiffusionSettings) -> None:
    """Refuse settings that ask for another model than the checkpoint that a run goes on from.

    Raises:
        ContextDiffusionError: naming the setting.
    """
    refuse_change("aggregation", settings.aggregation, model.reading.aggregation)


def refuse_change(name: str, asked: str | None, own: str) -> None:
    """Refuse a setting that is not the checkpoint's own; None asks for nothing."""
    if asked not in (None, own):
        raise ContextDiffusionError(
            f"[diffusion] {name} is {asked!r} and start_from is a model with {own!r}: train it from its start"
        )


def freeze_unused(model: ContextDiffusion) -> None:
    """Weights that nothing in training reads: of the image encoder what is behind its last hidden state."""
    getattr(model.image_encoder, "vision_model", model.image_encoder).post_layernorm.requires_grad_(False)


def first_model(
    settings: DiffusionSettings,
    build: Callable[[dict[str, Any], Any], ContextDiffusion] = build_model,
    check: Callable[[ContextDiffusion, Any], None] = check_start,
) -> ContextDiffusion:
    """What the settings of [diffusion] ask for, its VAE included.

    Args:
        settings: of [diffusion].
        build: makes a new model of its parts, see `build_model`.
        check: refuses a checkpoint to go on from, see `check_start`.

    Raises:
        ContextDiffusionError: files that are missing or do not fit, or settings that the checkpoint is not of.
    """
    if settings.start_from:
        model = _continued(settings, check)
    elif settings.pretrained:
        model = build(_around_pretrained(settings), settings)
    else:
        vae = load_vae(_stage_folder("vae", settings.vae))
        parts = new_parts(settings, vae.config.latent_channels, _stage_folder("clip", settings.clip))
        return build({**parts, "vae": vae}, settings)
    if settings.vae:
        model.vae = load_vae(settings.vae)
    return model


def _stage_folder(name: str, folder: str) -> Path:
    """Where an earlier stage wrote what a new model is made of."""
    if not folder:
        raise ContextDiffusionError(
            f"[diffusion] {name} is not given: name the folder of the {name} stage's run, or begin with a checkpoint "
            "by start_from or pretrained"
        )
    return Path(folder)


def _load(name: str, settings: DiffusionSettings) -> ContextDiffusion:
    """The checkpoint of `start_from` or `pretrained`, with every part that training reads."""
    path = getattr(settings, name)
    model = load_checkpoint(find_model(path), dtype=torch.float32)
    context = model.context_parts if name == "start_from" else ("image_encoder",)
    needed = ("vae", "text_encoder", "tokenizer", *context)
    # The VAE may be that of an earlier stage.
    missing = [part for part in needed if getattr(model, part) is None and not (part == "vae" and settings.vae)]
    if missing:
        raise ContextDiffusionError(f"[diffusion] {name} = {path!r} has no {', '.join(missing)}: give a whole model")
    return model


def _continued(settings: DiffusionSettings, check: Callable[[ContextDiffusion, Any], None]) -> ContextDiffusion:
    """The model of `start_from`, its UNet with more attention if that is asked for."""
    model = _load("start_from", settings)
    check(model, settings)
    model.unet = with_attention(model.unet, settings.attention or attention_of(model.unet))
    model.info.update(settings.info)
    return model


def new_unet(settings: DiffusionSettings, latent_channels: int, cross_attention_dim: int) -> nn.Module:
    """A UNet of ComfyUI's limits: one layer a block, groups of 32, heads of one width.

    Raises:
        ContextDiffusionError: channels that groups or heads do not divide, or another number of attentions.
    """
    from diffusers import UNet2DConditionModel

    channels, head_channels, attention = settings.channels, settings.head_channels, settings.attention
    if any(width % 32 or width % head_channels for width in channels):
        raise ContextDiffusionError(
            f"[diffusion] channels is {list(channels)} with head_channels {head_channels}: give multiples of 32, the "
            "UNet's groups, and of head_channels"
        )
    if len(attention) != len(channels):
        raise ContextDiffusionError(
            f"[diffusion] attention is {list(attention)} and channels {list(channels)}: give both one entry a "
            "resolution"
        )
    down, up = block_types(attention)
    return UNet2DConditionModel(
        sample_size=settings.sample_size,
        in_channels=latent_channels,
        out_channels=latent_channels,
        block_out_channels=channels,
        layers_per_block=1,
        down_block_types=down,
        up_block_types=up,
        cross_attention_dim=cross_attention_dim,
        # diffusers calls it attention_head_dim and means the number of heads.
        attention_head_dim=tuple(width // head_channels for width in channels),
    )


def new_parts(settings: DiffusionSettings, latent_channels: int, clip: Path) -> dict[str, Any]:
    """The parts of a fresh model around the CLIP stage's encoders; the layout encoder is the UNet's encoder's copy."""
    from transformers import CLIPTextModel, CLIPVisionModel

    try:
        text_encoder = CLIPTextModel.from_pretrained(clip / "text_encoder", local_files_only=True)
        image_encoder = CLIPVisionModel.from_pretrained(clip / "image_encoder", local_files_only=True)
        tokenizer = tokenizer_from_json((clip / "tokenizer.json").read_text())
    except OSError as error:
        raise ContextDiffusionError(f"[diffusion] clip = {str(clip)!r}: run the clip stage first ({error})") from error
    unet = new_unet(settings, latent_channels, text_encoder.config.hidden_size)
    encoders = {"text_encoder": text_encoder, "tokenizer": tokenizer, "image_encoder": image_encoder}
    return {**_around(unet, encoders, settings), "schedule": {"prediction_type": settings.prediction_type}}


def _around_pretrained(settings: DiffusionSettings) -> dict[str, Any]:
    """The parts of a model with the UNet, encoders and VAE of another one; layout encoder and projector are new.

    As the paper starts from Stable Diffusion: what the context adds is learned by a UNet that draws already. With
    `keep_layout` the other one's ControlNet stays too, so that only the way to the context is new.
    """
    start = _load("pretrained", settings)
    kept = _kept_layout(settings, start) if settings.keep_layout else None
    unet = with_attention(start.unet, settings.attention or attention_of(start.unet))
    encoders = {name: getattr(start, name) for name in ("text_encoder", "tokenizer", "image_encoder")}
    return {**_around(unet, encoders, settings, kept), "schedule": start.schedule, "vae": start.vae}


def _kept_layout(settings: DiffusionSettings, start: ContextDiffusion) -> nn.Module:
    """The layout encoder of `pretrained`, which must be a ControlNet as it was trained."""
    path = settings.pretrained
    if start.layout_encoder is None:
        raise ContextDiffusionError(
            f"[diffusion] pretrained = {path!r} has no ControlNet and keep_layout asks for it: leave keep_layout out"
        )
    own, attention = attention_of(start.layout_encoder), settings.layout_attention
    if attention is not None and tuple(attention) != own:
        raise ContextDiffusionError(
            f"[diffusion] layout_attention is {list(attention)} and the layout encoder of pretrained = {path!r} has "
            f"{list(own)}: a kept one stays as it is, leave one of layout_attention and keep_layout out"
        )
    return start.layout_encoder


def _around(
    unet: nn.Module, encoders: dict[str, Any], settings: DiffusionSettings, layout_encoder: nn.Module | None = None
) -> dict[str, Any]:
    """The parts of a model with a new projector and, unless there is one, a new layout encoder."""
    widths = (encoders[name].config.hidden_size for name in ("image_encoder", "text_encoder"))
    return {
        "unet": unet,
        "projector": ContextProjector(*widths),
        "layout_encoder": layout_encoder or new_layout_encoder(unet, settings.layout_attention),
        "info": settings.info,
        **encoders,
    }


def new_layout_encoder(unet: nn.Module, attention: Sequence[bool] | None = None) -> nn.Module:
    """A ControlNetModel that begins as a copy of the UNet's encoder.

    Args:
        unet: what is copied.
        attention: for each resolution, the finest first, whether the copy has attention; None for the UNet's own.

    Raises:
        ContextDiffusionError: another number of resolutions, or attention where the UNet has none to copy.
    """
    from diffusers import ControlNetModel

    copy = ControlNetModel.from_unet(unet)
    own = attention_of(unet)
    if attention is None or tuple(attention) == own:
        return copy
    if not within(attention, own):
        raise ContextDiffusionError(
            f"[diffusion] layout_attention is {list(attention)} and the UNet's attention is {list(own)}: the layout "
            "encoder is the UNet's copy and can only have less"
        )
    leaner = ControlNetModel.from_config(copy.config, down_block_types=block_types(attention)[0])
    leaner.load_state_dict(copy.state_dict(), strict=False)
    return leaner
