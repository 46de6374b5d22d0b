"""Attention where a trained UNet has none yet: the new blocks begin as the identity, so that nothing is lost."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from ..errors import ContextDiffusionError


def attention_of(network: nn.Module) -> tuple[bool, ...]:
    """Which resolutions of a UNet or ControlNet have attention, the finest first."""
    return tuple("CrossAttn" in name for name in network.config.down_block_types)


def with_attention(unet: nn.Module, attention: Sequence[bool]) -> nn.Module:
    """A UNet2DConditionModel with attention at more resolutions and, until it is trained, the same output.

    Args:
        unet: its weights are copied.
        attention: for each resolution, the finest first, whether it is to have attention.

    Raises:
        ContextDiffusionError: another number of resolutions, or attention would be taken away.
    """
    wanted, own = tuple(map(bool, attention)), attention_of(unet)
    if wanted == own:
        return unet
    if len(wanted) != len(own) or any(here and not there for here, there in zip(own, wanted, strict=True)):
        raise ContextDiffusionError(
            f"[diffusion] attention is {list(wanted)} and start_from has {list(own)}: attention can be added to a "
            "model, not taken away"
        )
    down = tuple("CrossAttnDownBlock2D" if here else "DownBlock2D" for here in wanted)
    up = tuple("CrossAttnUpBlock2D" if here else "UpBlock2D" for here in reversed(wanted))
    grown = type(unet).from_config(unet.config, down_block_types=down, up_block_types=up)
    for name in grown.load_state_dict(unet.state_dict(), strict=False).missing_keys:
        # A transformer adds what its last projection gives to what it got.
        if ".proj_out." in name:
            nn.init.zeros_(grown.get_parameter(name))
    return grown
