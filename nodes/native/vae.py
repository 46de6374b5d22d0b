"""The autoencoder as the host's VAE, and the format of its latents."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import comfy.diffusers_convert
import comfy.latent_formats
import comfy.sd
import torch
from torch import Tensor

from ...context_diffusion.checkpoint.native_vae import native_tiny_vae_state_dict
from ...context_diffusion.checkpoint.stored import StoredModel
from ...context_diffusion.errors import ContextDiffusionError
from .weights import check_weights, shapes_of


class FittedLatent(comfy.latent_formats.LatentFormat):
    """Latents as the UNet sees them: (latent - shift) * scale.

    Args:
        channels: of a latent.
        scale: the VAE's scaling_factor.
        shift: the VAE's shift_factor.
    """

    def __init__(self, channels: int, scale: float, shift: float = 0.0) -> None:
        self.latent_channels, self.scale_factor, self.shift_factor = channels, scale, shift

    def process_in(self, latent: Tensor) -> Tensor:
        return (latent - self.shift_factor) * self.scale_factor

    def process_out(self, latent: Tensor) -> Tensor:
        return latent / self.scale_factor + self.shift_factor

    def fit_preview(self, vae: comfy.sd.VAE) -> None:
        """Find the colors of a latent, so that the host's previews show the picture while it is sampled.

        They are the least-squares map from latents to colors over a chart of random patches: the VAE itself says what
        its latents mean, so a new VAE brings new previews and no file has to carry them. Costs one small encode. A VAE
        that gives no numbers in the precision that the user has set (--fp16-vae) goes without previews.
        """
        cells, side = 8, 16
        generator = torch.Generator().manual_seed(0)
        colors = torch.rand(cells, cells, 3, generator=generator)
        chart = colors.repeat_interleave(side, 0).repeat_interleave(side, 1)
        latents = self.process_in(vae.encode(chart[None]).float().cpu())[0].flatten(1).T
        if not latents.isfinite().all():
            return
        # A latent is as wide as the host says, eight pixels: the color there is the chart's mean over them.
        step = cells * side // round(latents.shape[0] ** 0.5)
        seen = chart.unflatten(0, (-1, step)).unflatten(2, (-1, step)).mean((1, 3)).flatten(0, 1)
        known = torch.cat([latents, torch.ones_like(latents[:, :1])], dim=1)
        # Previews are in [-1, 1].
        factors = torch.linalg.lstsq(known, 2 * seen - 1).solution
        self.latent_rgb_factors, self.latent_rgb_factors_bias = factors[:-1].tolist(), factors[-1].tolist()


def build_vae(stored: StoredModel) -> comfy.sd.VAE | None:
    """An AutoencoderKL or an AutoencoderTiny as the host's VAE; None when the file has none.

    Args:
        stored: with the weights of the vae.
    """
    if "vae" not in stored.configs:
        return None
    config = stored.configs["vae"]
    native = native_weights(stored.path, config, stored.weights["vae"])
    settings = {} if _is_tiny(config) else {"config": {"params": _kl_params(config)}}
    with shapes_of(stored.path, "vae"):
        vae = comfy.sd.VAE(sd=native, **settings)
    check_weights(stored.path, "vae", native, vae.first_stage_model)
    # Read from the weights of a tiny VAE; with a config the host takes every VAE for Stable Diffusion's.
    vae.latent_channels = config["latent_channels"]
    return vae


def native_weights(path: Path, config: dict[str, Any], weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """A VAE's weights by the host's names; those that come from the file share their memory.

    Raises:
        ContextDiffusionError: they are not the ones of such a config.
    """
    if not _is_tiny(config):
        return comfy.diffusers_convert.convert_vae_state_dict({**_identities(config), **weights})
    try:
        return native_tiny_vae_state_dict(config, weights)
    except (KeyError, IndexError, ValueError) as error:
        message = f"{path}: the vae weights are not the ones that its config asks for: save it again"
        raise ContextDiffusionError(message) from error


def latent_format(stored: StoredModel, vae: comfy.sd.VAE | None) -> comfy.latent_formats.LatentFormat:
    """The format of a model's latents.

    Args:
        stored: the model.
        vae: its VAE, or None when the user's own is to be used.

    Raises:
        ContextDiffusionError: the file has no VAE, and its latents are not Stable Diffusion 1.5's.
    """
    if vae is None:
        channels = stored.configs["unet"]["in_channels"]
        if channels != 4:
            raise ContextDiffusionError(
                f"{stored.path} has no VAE and latents of {channels} channels, so that nothing says how they are "
                "scaled: save it with its VAE"
            )
        return comfy.latent_formats.SD15()
    config = stored.configs["vae"]
    latents = FittedLatent(config["latent_channels"], config["scaling_factor"], config.get("shift_factor") or 0.0)
    latents.fit_preview(vae)
    return latents


def _is_tiny(config: dict[str, Any]) -> bool:
    return config.get("class") == "AutoencoderTiny"


def _kl_params(config: dict[str, Any]) -> dict[str, Any]:
    channels = config["block_out_channels"]
    return {
        "ddconfig": {
            "double_z": True,
            "z_channels": config["latent_channels"],
            "resolution": 256,
            "in_channels": config["in_channels"],
            "out_ch": config["out_channels"],
            "ch": channels[0],
            "ch_mult": [each // channels[0] for each in channels],
            "num_res_blocks": config["layers_per_block"],
            "attn_resolutions": [],
            "dropout": 0.0,
        },
        "embed_dim": config["latent_channels"],
    }


def _identities(config: dict[str, Any]) -> dict[str, Tensor]:
    """1x1 convolutions that change nothing, for a VAE without those around its latents."""
    convolutions = {}
    for name, channels in (
        ("quant_conv", 2 * config["latent_channels"]),
        ("post_quant_conv", config["latent_channels"]),
    ):
        if not config.get(f"use_{name}", True):
            convolutions[f"{name}.weight"] = torch.eye(channels)[:, :, None, None]
            convolutions[f"{name}.bias"] = torch.zeros(channels)
    return convolutions
