"""Which resolutions of a UNet or ControlNet have attention, and a trained UNet with more of it."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from ...errors import ContextDiffusionError


def block_types(attention: Sequence[bool]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """diffusers' names of the blocks on the way down and up; `attention` is for each resolution, the finest first."""
    down = tuple("CrossAttnDownBlock2D" if here else "DownBlock2D" for here in attention)
    up = tuple("CrossAttnUpBlock2D" if here else "UpBlock2D" for here in reversed(attention))
    return down, up


def attention_of(network: nn.Module) -> tuple[bool, ...]:
    """Which resolutions of a UNet or ControlNet have attention, the finest first."""
    return tuple("CrossAttn" in name for name in network.config.down_block_types)


def within(less: Sequence[bool], more: Sequence[bool]) -> bool:
    """Whether both are for as many resolutions and `more` has attention wherever `less` does."""
    return len(less) == len(more) and all(there or not here for here, there in zip(less, more, strict=True))


def with_attention(unet: nn.Module, attention: Sequence[bool]) -> nn.Module:
    """A UNet2DConditionModel with attention at more resolutions and, until it is trained, the same output.

    Args:
        unet: its weights are copied.
        attention: for each resolution, the finest first, whether it is to have attention.

    Raises:
        ContextDiffusionError: another number of resolutions, attention would be taken away, or weights that the grown
            UNet would not have.
    """
    wanted, own = tuple(attention), attention_of(unet)
    if wanted == own:
        return unet
    if not within(own, wanted):
        raise ContextDiffusionError(
            f"[diffusion] attention is {list(wanted)} and the checkpoint has {list(own)}: attention can be added to a "
            "model, not taken away"
        )
    down, up = block_types(wanted)
    grown = type(unet).from_config(unet.config, down_block_types=down, up_block_types=up)
    loaded = grown.load_state_dict(unet.state_dict(), strict=False)
    if loaded.unexpected_keys:
        raise ContextDiffusionError(
            f"[diffusion] attention is {list(wanted)} and the checkpoint's UNet has weights of its own kind "
            f"({loaded.unexpected_keys[0]}): leave attention at {list(own)}"
        )
    for name in loaded.missing_keys:
        # A transformer adds what its last projection gives to what it got.
        if ".proj_out." in name:
            nn.init.zeros_(grown.get_parameter(name))
    return grown
