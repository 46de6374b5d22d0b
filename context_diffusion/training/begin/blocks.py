"""A trained tiny autoencoder with more residual blocks."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from ...errors import ContextDiffusionError


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
