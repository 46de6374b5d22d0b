"""The query as layout: encoded once an image, heard at every step; by a ControlNet."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from ..errors import ContextDiffusionError


class ControlNetLayout:
    """What the model asks of a layout encoder, for a diffusers ControlNetModel (arXiv 2302.05543).

    Another kind of network is asked itself: it has `query_factor`, `encode_layout` and `predict` of its own.

    Raises:
        ContextDiffusionError: the network is no ControlNet.
    """

    def __init__(self, controlnet: nn.Module) -> None:
        if not hasattr(controlnet, "controlnet_cond_embedding"):
            raise ContextDiffusionError(
                f"the layout encoder is a {type(controlnet).__name__}, which does not say how its layout is heard: "
                "give a ControlNetModel"
            )
        self.controlnet: Any = controlnet

    @property
    def query_factor(self) -> int:
        """Pixels of the query a latent pixel, on each side."""
        return 2 ** (len(self.controlnet.config.conditioning_embedding_out_channels) - 1)

    def encode_layout(self, query: Tensor) -> Tensor:
        """Query images (B, 3, 8h, 8w) in [0, 1] -> what does not depend on z_t and t, the stem's features (B, C, h, w).

        The stem costs as much as half of the UNet: samplers run it once an image, and training once for all noise
        levels of an image. Features are indexed and repeated by rows.
        """
        if hasattr(self.controlnet, "_hf_hook"):
            # The network's own call is what brings offloaded weights to the device: the stem runs with it.
            return query
        return self.controlnet.controlnet_cond_embedding(query)

    def predict(
        self, unet: nn.Module, z_t: Tensor, timestep: Tensor, y: Any, layout: Tensor, strength: float | Tensor
    ) -> Tensor:
        """The UNet's prediction (B, C, h, w) with the layout's residuals, `strength` times.

        Args:
            unet, z_t, timestep, y: as in `ContextDiffusion.predict`, y as the UNet's cross-attention takes it.
            layout: from `encode_layout`, or query images.
            strength: a number, or one for each row, (B, 1, 1, 1).
        """
        settings = {"conditioning_scale": strength, "return_dict": False}
        if layout.shape[-2:] != z_t.shape[-2:]:
            down, mid = self.controlnet(z_t, timestep, y, layout, **settings)
        else:
            with self._stem_gives(layout):
                # The stem's output is replaced: what it sees only has to be small.
                blank = layout.new_zeros(layout.shape[0], 3, 8, 8)
                down, mid = self.controlnet(z_t, timestep, y, blank, **settings)
        residuals = {"down_block_additional_residuals": down, "mid_block_additional_residual": mid}
        return unet(z_t, timestep, y, return_dict=False, **residuals)[0]

    @contextmanager
    def _stem_gives(self, features: Tensor) -> Iterator[None]:
        """Within it the stem returns `features`, whatever it is shown."""
        handle = self.controlnet.controlnet_cond_embedding.register_forward_hook(lambda *_: features)
        try:
            yield
        finally:
            handle.remove()


def layout_of(layout_encoder: Any) -> ControlNetLayout:
    """A model's layout encoder by what the model asks of it, see `ControlNetLayout`."""
    return layout_encoder if hasattr(layout_encoder, "encode_layout") else ControlNetLayout(layout_encoder)
