"""A tiny VAE's weights under the names, and in the shape, of ComfyUI's own tiny autoencoder (TAESD).

ComfyUI builds that network with a fixed number of residual blocks a level, while a small model has fewer.
Such a block is relu(f(x) + x): with f = 0 it changes nothing that has been through a ReLU. So the missing
blocks are filled with zeros behind the real ones, and the two networks compute the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import ContextDiffusionError

WIDTH = 64
LEVELS = 4
# Residual blocks of each level, from the input to the output.
ENCODER_BLOCKS = (1, 3, 3, 3)
DECODER_BLOCKS = (3, 3, 3, 1)
# ComfyUI takes a tiny VAE of so many channels for one with another network (FLUX.2's).
_FOREIGN_CHANNELS = 128

_FIXED = {
    "in_channels": 3,
    "out_channels": 3,
    "act_fn": "relu",
    "upsample_fn": "nearest",
    "upsampling_scaling_factor": 2,
}


def tiny_vae_limits(config: Mapping[str, Any]) -> Iterator[str]:
    """Every setting of an AutoencoderTiny that ComfyUI's network has no place for, one line each."""
    for key, wanted in _FIXED.items():
        if config.get(key, wanted) != wanted:
            yield f"vae: {key} is {config[key]!r}, must be {wanted!r}"
    for part, most in (("encoder", ENCODER_BLOCKS), ("decoder", DECODER_BLOCKS)):
        widths, blocks = list(config[f"{part}_block_out_channels"]), list(config[f"num_{part}_blocks"])
        if widths != [WIDTH] * LEVELS:
            yield f"vae: {part}_block_out_channels are {widths}, must be {[WIDTH] * LEVELS}"
        elif not all(1 <= each <= limit for each, limit in zip(blocks, most, strict=True)):
            yield f"vae: num_{part}_blocks are {blocks}, must be 1 or more and at most {list(most)}"
    if config["latent_channels"] == _FOREIGN_CHANNELS:
        yield f"vae: latent_channels is {_FOREIGN_CHANNELS}, must be another number"


def native_tiny_vae_state_dict(config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights as ComfyUI's `VAE(sd=...)` takes them.

    Both networks take images in [-1, 1], bound latents by 3 tanh(z / 3) before decoding, and speak of the
    same unscaled latents: `config.scaling_factor` is the latent format's scale_factor there.

    Args:
        config: of an AutoencoderTiny with `WIDTH` channels on four levels and 1 to `ENCODER_BLOCKS` and
            `DECODER_BLOCKS` blocks a level.
        weights: its `state_dict()`, or what a checkpoint has of it.

    Returns:
        taesd_encoder.N.*, taesd_decoder.N.*, vae_scale and vae_shift, in the weights' own dtype and on their
        device; all but the filling share their memory.

    Raises:
        ContextDiffusionError: the config breaks one of the `tiny_vae_limits`, or the weights are not its.
    """
    limits = list(tiny_vae_limits(config))
    if limits:
        raise ContextDiffusionError(f"the VAE does not become a native one: {limits[0]}")
    native = {
        **_rename(
            _half(weights, "encoder"),
            _encoder_layers(config["num_encoder_blocks"]),
            _encoder_layers(ENCODER_BLOCKS),
            "taesd_encoder",
        ),
        **_rename(
            _half(weights, "decoder"),
            _decoder_layers(config["num_decoder_blocks"]),
            ["clamp", *_decoder_layers(DECODER_BLOCKS)],
            "taesd_decoder",
        ),
    }
    # There for weights whose latents are scaled already; these are not.
    like = native["taesd_encoder.0.bias"]
    return native | {"vae_scale": like.new_ones(()), "vae_shift": like.new_zeros(())}


def _half(weights: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """The encoder's or the decoder's weights, by layer number and name."""
    start = f"{name}.layers."
    return {key[len(start) :]: tensor for key, tensor in weights.items() if key.startswith(start)}


def _encoder_layers(blocks: Sequence[int]) -> list[str]:
    """What each layer is, by its number."""
    layers = []
    for level, count in enumerate(blocks):
        layers += [f"conv {level}", *_blocks(level, count)]
    return [*layers, "conv out"]


def _decoder_layers(blocks: Sequence[int]) -> list[str]:
    layers = ["conv in", "relu"]
    for level, count in enumerate(blocks):
        layers += [*_blocks(level, count), f"upsample {level}", f"conv {level}"]
    return [*layers[:-2], "conv out"]  # the last level keeps its size


def _blocks(level: int, count: int) -> list[str]:
    return [f"block {level}.{number}" for number in range(count)]


def _rename(weights: dict[str, Tensor], layers: list[str], native_layers: list[str], prefix: str) -> dict[str, Tensor]:
    """Weights numbered as `layers` -> as `native_layers`, with zeros for blocks that only those have."""
    by_layer: dict[str, dict[str, Tensor]] = {}
    for key, tensor in weights.items():
        number, _, leaf = key.partition(".")
        by_layer.setdefault(layers[int(number)], {})[leaf] = tensor
    zeros = {leaf: torch.zeros_like(tensor) for leaf, tensor in by_layer["block 0.0"].items()}
    native = {}
    for number, layer in enumerate(native_layers):
        filling = zeros if layer.startswith("block") else {}
        for leaf, tensor in by_layer.get(layer, filling).items():
            native[f"{prefix}.{number}.{leaf}"] = tensor if layer in by_layer else tensor.clone()
    return native
