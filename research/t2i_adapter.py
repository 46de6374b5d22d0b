"""The query by a T2I adapter (arXiv 2302.08453): one run an image, its features added to the UNet's down blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import diffusers
from torch import Tensor, nn


class Pyramid(tuple):
    """An adapter's features, a tensor (B, c, h, w) for each of the UNet's resolutions; by rows as one tensor is."""

    def __getitem__(self, rows: Any) -> Pyramid:
        return Pyramid(features[rows] for features in self)

    def repeat(self, *times: int) -> Pyramid:
        return Pyramid(features.repeat(*times) for features in self)


class T2IAdapter(diffusers.T2IAdapter):
    """diffusers' adapter with what the model asks of a layout encoder (`model.layout.ControlNetLayout`)."""

    @property
    def query_factor(self) -> int:
        return self.config.downscale_factor

    def encode_layout(self, query: Tensor) -> Pyramid:
        return Pyramid(self(query))

    def predict(
        self,
        unet: nn.Module,
        z_t: Tensor,
        timestep: Tensor,
        y: Any,
        layout: Tensor | Pyramid,
        strength: float | Tensor,
    ) -> Tensor:
        features = layout if isinstance(layout, Pyramid) else self.encode_layout(layout)
        with features_added(unet, features, strength):
            return unet(z_t, timestep, y, return_dict=False)[0]


def new_adapter(unet: nn.Module, downscale: int = 8) -> T2IAdapter:
    """A fresh adapter for a UNet: one set of features for each of its resolutions.

    Args:
        unet: UNet2DConditionModel.
        downscale: pixels of the query a latent pixel, on each side.
    """
    return T2IAdapter(in_channels=3, channels=list(unet.config.block_out_channels), downscale_factor=downscale)


@contextmanager
def features_added(unet: nn.Module, features: Pyramid, strength: float | Tensor) -> Iterator[None]:
    """Within it the UNet's down blocks add the features, each at the end of its resolution, before it goes down.

    diffusers' own `down_intrablock_additional_residuals` adds them after the downsampling in blocks without attention,
    where their sizes differ.
    """

    def adder(extra: Tensor) -> Callable:
        def add(module: nn.Module, inputs: Any, output: Tensor | tuple) -> Tensor | tuple:
            if isinstance(output, Tensor):
                return output + extra
            return (output[0] + extra, *output[1:])

        return add

    with ExitStack() as stack:
        for block, feature in zip(unet.down_blocks, features, strict=True):
            last = (getattr(block, "attentions", None) or block.resnets)[-1]
            stack.callback(last.register_forward_hook(adder(strength * feature)).remove)
        yield


def misfits(configs: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """What does not fit an adapter, see `checkpoint.parts.register_fit`."""
    adapter = configs.get("layout_encoder", {})
    if adapter.get("class") == T2IAdapter.__name__:
        own, channels = list(configs["unet"]["block_out_channels"]), list(adapter["channels"])
        if own != channels:
            yield (
                f"the UNet's block_out_channels is {own} and the T2I adapter's channels is {channels}: "
                "they must be equal"
            )
