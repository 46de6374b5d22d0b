"""Images <-> scaled latents, with either of the autoencoders that a model may have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, AutoencoderTiny
    from torch import Tensor


def encode_images(vae: AutoencoderKL | AutoencoderTiny, images: Tensor) -> Tensor:
    """Images (B, 3, H, W) in [0, 1] -> scaled latents (B, C, H/8, W/8).

    An AutoencoderKL gives its posterior's mean; an AutoencoderTiny has no posterior, only latents.
    """
    encoded = vae.encode(images * 2 - 1)
    latents = encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.mode()
    return (latents - _shift(vae)) * vae.config.scaling_factor


def decode_latents(vae: AutoencoderKL | AutoencoderTiny, latents: Tensor) -> Tensor:
    """Scaled latents (B, C, h, w) -> images (B, 3, 8h, 8w), clamped to [0, 1]."""
    decoded = vae.decode(latents / vae.config.scaling_factor + _shift(vae)).sample
    return (decoded / 2 + 0.5).clamp(0, 1)


def vae_scale_factor(config: Mapping[str, Any]) -> int:
    """Pixels a latent is wide.

    Args:
        config: of an AutoencoderKL or an AutoencoderTiny: `vae.config`, or what a checkpoint says of it.
    """
    channels = config.get("block_out_channels") or config["decoder_block_out_channels"]
    return 2 ** (len(channels) - 1)


def _shift(vae: AutoencoderKL | AutoencoderTiny) -> float:
    return vae.config.get("shift_factor") or 0.0
