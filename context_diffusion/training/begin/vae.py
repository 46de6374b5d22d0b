"""Tiny autoencoders: a new one, a trained one, one with more blocks, and whether two make the same latents."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import nn

from ...errors import ContextDiffusionError

# What of an autoencoder has no part in the latents that it makes.
_DECODING = ("decoder.", "post_quant_conv.")

# How far weights of one encoder may lie apart in two files: half precision rounds to 11 bits.
_ROUNDING = 2.0**-10


def new_vae(latent_channels: int, encoder_blocks: tuple[int, ...], decoder_blocks: tuple[int, ...]) -> nn.Module:
    """A tiny autoencoder of factor 8 in TAESD's shape: width 64, no normalisation, ReLU.

    A KL autoencoder needs groups of 32 to load in ComfyUI; at the 32 channels that two cores can train, each group
    is one channel, and the norms wipe out the mean color of every flat area. This shape has no norms at all.
    """
    from diffusers import AutoencoderTiny

    return AutoencoderTiny(
        latent_channels=latent_channels,
        encoder_block_out_channels=(64,) * 4,
        decoder_block_out_channels=(64,) * 4,
        num_encoder_blocks=tuple(encoder_blocks),
        num_decoder_blocks=tuple(decoder_blocks),
    )


def load_vae(folder: str | Path) -> nn.Module:
    """The `vae/` folder that a run of this stage wrote.

    Raises:
        ContextDiffusionError: the folder holds no such autoencoder, another kind of one, or a damaged one.
    """
    from diffusers import AutoencoderTiny

    path = Path(folder) / "vae"
    if not (path / "config.json").is_file():
        raise ContextDiffusionError(f"{folder} has no vae/ folder of the vae stage: run that stage first")
    try:
        kind = json.loads((path / "config.json").read_text())["_class_name"]
        if kind == AutoencoderTiny.__name__:
            return AutoencoderTiny.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise ContextDiffusionError(
            f"{path} is damaged: run the vae stage again, or name another folder ({' '.join(str(error).split())[:200]})"
        ) from error
    raise ContextDiffusionError(
        f"{path} holds an {kind} and the vae stage writes an {AutoencoderTiny.__name__}: name the folder of a run of "
        "that stage"
    )


def with_blocks(vae: nn.Module, encoder_blocks: Sequence[int], decoder_blocks: Sequence[int]) -> nn.Module:
    """An AutoencoderTiny with more residual blocks a level and, until it is trained, the same output.

    A block is relu(f(x) + x), and the new ones stand behind a level's own, where x has been through a ReLU: with the
    last layer of f at zero they change nothing.

    Args:
        vae: its weights are copied.
        encoder_blocks: of each level, from the input to the output.
        decoder_blocks: likewise.

    Raises:
        ContextDiffusionError: another number of levels, or fewer blocks than the autoencoder has.
    """
    config = vae.config
    for name, wanted in (("encoder_blocks", encoder_blocks), ("decoder_blocks", decoder_blocks)):
        own = config[f"num_{name}"]
        if len(own) != len(wanted) or any(more < less for more, less in zip(wanted, own, strict=True)):
            raise ContextDiffusionError(
                f"[vae] {name} is {list(wanted)} and the autoencoder of start_from has {list(own)}: blocks can be "
                "added to an autoencoder, not taken away"
            )
    grown = type(vae).from_config(
        config, num_encoder_blocks=tuple(encoder_blocks), num_decoder_blocks=tuple(decoder_blocks)
    )
    _copy(vae.encoder, grown.encoder)
    _copy(vae.decoder, grown.decoder)
    return grown


def same_latents(first: nn.Module, second: nn.Module) -> bool:
    """Do two autoencoders make the same latents, but for the rounding of half precision?"""
    if type(first) is not type(second):
        return False
    if any(first.config.get(name) != second.config.get(name) for name in ("scaling_factor", "shift_factor")):
        return False
    state, other = (
        {name: value.float() for name, value in vae.state_dict().items() if not name.startswith(_DECODING)}
        for vae in (first, second)
    )
    return state.keys() == other.keys() and all(
        value.shape == other[name].shape
        and torch.allclose(value, other[name], rtol=_ROUNDING, atol=_ROUNDING * float(value.abs().max()))
        for name, value in state.items()
    )


def latents_digest(vae: nn.Module) -> str:
    """A short name for all of an autoencoder that its latents depend on; another decoder leaves it the same."""
    digest = hashlib.sha256(repr((vae.config.scaling_factor, vae.config.get("shift_factor"))).encode())
    for name, value in vae.state_dict().items():
        if not name.startswith(_DECODING):
            digest.update(value.float().contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def _copy(part: nn.Module, grown: nn.Module) -> None:
    """An encoder's or decoder's layers, in turn; where the grown one has a block more, that becomes the identity."""
    own = iter(part.layers)
    layer = next(own, None)
    for new in grown.layers:
        if type(new) is type(layer):
            new.load_state_dict(layer.state_dict())
            layer = next(own, None)
        else:
            nn.init.zeros_(new.conv[-1].weight)
            nn.init.zeros_(new.conv[-1].bias)
