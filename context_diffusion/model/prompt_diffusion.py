"""The baseline: Prompt Diffusion (arXiv 2305.01115), which is shown one example pair as pictures.

Source and target of the pair go through a stem of convolutions together, the query through the ControlNet's own; their
sum enters the ControlNet. Text is all that the cross-attention reads. Without an example the pair's stem adds nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

WIDTHS = (16, 32, 96, 256)


class ExampleEncoder(nn.Module):
    """The pair's stem: as the ControlNet's own, for six channels; its last convolution starts at zero, too.

    Args:
        channels: the ControlNet's first width.
        widths: of the stem's convolutions.
    """

    def __init__(self, channels: int, widths: Sequence[int] = WIDTHS) -> None:
        from diffusers.models.controlnets.controlnet import ControlNetConditioningEmbedding

        super().__init__()
        self.config = {"channels": channels, "widths": list(widths)}
        self.stem = ControlNetConditioningEmbedding(channels, conditioning_channels=6, block_out_channels=tuple(widths))

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """The example's query map and picture, (B, 3, 8h, 8w) in [0, 1] -> features (B, C, h, w)."""
        return self.stem(torch.cat([source, target], dim=1))
