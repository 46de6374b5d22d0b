"""The baseline: Prompt Diffusion (arXiv 2305.01115), which is shown one example pair as pictures.

Source and target of the pair go through a stem of convolutions together, the query through the ControlNet's own; their
sum enters the ControlNet. Text is all that the cross-attention reads. Without an example the pair's stem adds nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from context_diffusion.errors import ContextDiffusionError
from context_diffusion.model.context_diffusion import ContextDiffusion
from context_diffusion.model.guidance import FULL, NULL

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


class PromptDiffusion(ContextDiffusion):
    """The baseline as a model that samplers, training and evaluation take for a `ContextDiffusion`.

    Attributes:
        example_encoder: the pair's stem.
        projector, image_encoder: None.
    """

    wants_context_queries = True
    needed_parts = ("unet", "layout_encoder", "example_encoder")
    context_parts = ("example_encoder",)

    def __init__(
        self, unet: nn.Module, projector: None = None, *, example_encoder: ExampleEncoder, **parts: Any
    ) -> None:
        super().__init__(unet, projector, **parts)
        self.example_encoder = example_encoder

    def encode_query(self, query: Tensor, example: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """The stem's features of the query, with the pair's added.

        Args:
            query: q (B, 3, 8h, 8w) in [0, 1].
            example: the example's query and its picture, each like `query`.
        """
        features = super().encode_query(query)
        return features if example is None else features + self.example_encoder(*example)

    def guided_inputs(
        self,
        branches: Sequence[str],
        text: Tensor,
        null_text: Tensor,
        context: Tensor | None,
        query: Tensor | None,
        context_queries: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """y is text alone; the first context image is a pair in the layout of the branches that hear the context."""
        y = torch.cat([text if name == FULL else null_text for name in branches])
        if context is not None and (query is None or context_queries is None):
            raise ContextDiffusionError(
                "the model is the Prompt Diffusion baseline and its context comes as example pairs beside a query: "
                "give query and context_queries"
            )
        if query is None:
            return y, None
        query = query.to(y)
        example = None if context is None else (context_queries[:, 0].to(y), context[:, 0].to(y))
        plain, shown = self.encode_query(query), self.encode_query(query, example)
        return y, torch.cat([plain if name == NULL else shown for name in branches])


def misfits(configs: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """What does not fit the pair's stem, see `checkpoint.parts.register_fit`."""
    if "example_encoder" not in configs:
        return
    width, channels = configs["unet"]["block_out_channels"][0], configs["example_encoder"]["channels"]
    if width != channels:
        yield f"the UNet's first width is {width} and the example encoder's channels is {channels}: they must be equal"
    if "class" in configs.get("layout_encoder", {}):
        yield "the example encoder feeds a ControlNet and the layout encoder is a T2I adapter"
