"""One of our checkpoints as the host's own MODEL, CLIP, VAE, CLIP_VISION, STYLE_MODEL and CONTROL_NET.

They are made by the host's model classes, loaders, patchers and dtype rules, and neither by diffusers (which the host
does not have) nor with any memory management of their own. What other nodes may ask of them, all of it on native
attributes:

- STYLE_MODEL: `.model` is a `ContextProjection` with `n_tokens` (tokens of one averaged visual context, None when the
  file has no image encoder), `vision_width` (it takes `last_hidden_state` of this width) and `text_width` (it gives
  tokens of this width, on the input's device and in its dtype, always in memory of their own) and `encoder` (the mark
  of the image encoder whose tokens it reads, see `checkpoint.style.encoder_mark`; CLIP_VISION has it as
  `context_diffusion_encoder`).
- MODEL: `.model.model_config.unet_config["context_dim"]` is the width of the text that it takes,
  `.model.latent_format.latent_channels` the channels of its latents. The host's Save nodes write it as a checkpoint
  of ours, see `save`.
- CONTROL_NET: `.control_model` is a `comfy.cldm.cldm.ControlNet`, for the same text and latents as the MODEL.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.controlnet
import comfy.sd
from comfy.clip_vision import ClipVisionModel
from comfy.latent_formats import LatentFormat
from comfy.model_patcher import ModelPatcher

from ...context_diffusion.checkpoint.stored import StoredModel, read_stored
from ...context_diffusion.errors import ContextDiffusionError
from .diffusion import build_control_net, build_model
from .encoders import build_clip, build_clip_vision, build_style_model
from .vae import build_vae, latent_format


@dataclass(frozen=True)
class NativeModel:
    """A checkpoint's parts as native objects; None for one that the file does not have."""

    model: ModelPatcher
    clip: comfy.sd.CLIP | None
    vae: comfy.sd.VAE | None
    clip_vision: ClipVisionModel | None
    style_model: comfy.sd.StyleModel
    control_net: comfy.controlnet.ControlNet | None


def load_native(path: str | Path) -> NativeModel:
    """Build the native objects of a checkpoint.

    Raises:
        ContextDiffusionError: the file is missing, damaged or of another origin; the host's classes cannot run what
            it holds; or its weights are not the ones that its config asks for.
    """
    stored = _read(path)
    vae = build_vae(stored)
    latents = latent_format(stored, vae)
    model, clip = build_model(stored, latents), build_clip(stored)
    # What the host calls to have the same weights once more: for another GPU, or without its paging of weights.
    path = str(path)
    model.cached_patcher_init = (_reload_model, (path, latents))
    if vae is not None:
        vae.patcher.cached_patcher_init = (_reload_vae, (path,))
    if clip is not None:
        clip.patcher.cached_patcher_init = (_reload_clip, (path,))
    return NativeModel(
        model, clip, vae, build_clip_vision(stored), build_style_model(stored), build_control_net(stored)
    )


def _read(path: str | Path, **parts: Any) -> StoredModel:
    stored = read_stored(path, **parts)
    if stored.limits:
        raise ContextDiffusionError(f"{path} cannot run in ComfyUI: {'; '.join(stored.limits)}")
    return stored


def _reload_model(path: str, latents: LatentFormat, disable_dynamic: bool = False) -> ModelPatcher:
    return build_model(_read(path, parts=("unet",)), latents, disable_dynamic)


def _reload_clip(path: str, disable_dynamic: bool = False) -> ModelPatcher:
    return build_clip(_read(path, parts=("text_encoder",)), disable_dynamic).patcher


def _reload_vae(path: str, disable_dynamic: bool = False) -> ModelPatcher:
    # As the host's own: its VAE class has no such switch.
    return build_vae(_read(path, parts=("vae",))).patcher
