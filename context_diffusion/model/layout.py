"""The query as layout: by a ControlNet at every step, or by a T2I adapter (arXiv 2302.08453) once an image."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

LAYOUTS = ("controlnet", "t2i_adapter", "none")

# What `ContextDiffusion.encode_query` gives: a ControlNet's stem features, or an adapter's for each resolution.
Layout = Tensor | tuple[Tensor, ...]


def is_adapter(layout_encoder: nn.Module | None) -> bool:
    """Whether the layout encoder is a T2I adapter."""
    return type(layout_encoder).__name__ == "T2IAdapter"


def new_adapter(unet: nn.Module, downscale: int = 8) -> nn.Module:
    """A fresh T2IAdapter for a UNet: one set of features for each of its resolutions.

    Args:
        unet: UNet2DConditionModel.
        downscale: pixels of the query a latent pixel, on each side.
    """
    from diffusers import T2IAdapter

    return T2IAdapter(in_channels=3, channels=list(unet.config.block_out_channels), downscale_factor=downscale)


def query_factor(layout_encoder: nn.Module) -> int:
    """Pixels of the query a latent pixel, on each side."""
    if is_adapter(layout_encoder):
        return layout_encoder.config.downscale_factor
    return 2 ** (len(layout_encoder.config.conditioning_embedding_out_channels) - 1)


def repeat_rows(layout: Layout, times: int) -> Layout:
    """The layout's rows `times` over, one after another as in `Tensor.repeat`."""
    if isinstance(layout, Tensor):
        return layout.repeat(times, 1, 1, 1)
    return tuple(features.repeat(times, 1, 1, 1) for features in layout)


def pick_rows(layout: Layout, rows: Tensor) -> Layout:
    """The layout of some rows, each as often as it is named."""
    return layout[rows] if isinstance(layout, Tensor) else tuple(features[rows] for features in layout)


@contextmanager
def features_added(unet: nn.Module, features: tuple[Tensor, ...], strength: float | Tensor) -> Iterator[None]:
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


@contextmanager
def stem_gives(layout_encoder: nn.Module, features: Tensor) -> Iterator[None]:
    """Within it a ControlNet's stem returns `features`, whatever it is shown."""
    handle = layout_encoder.controlnet_cond_embedding.register_forward_hook(lambda *_: features)
    try:
        yield
    finally:
        handle.remove()


def predict_with_layout(
    unet: nn.Module, layout_encoder: nn.Module, z_t: Tensor, timestep: Tensor, y: Any, query: Layout, strength: Any
) -> Tensor:
    """The UNet's prediction with a layout; arguments as in `ContextDiffusion.predict`."""
    if is_adapter(layout_encoder):
        features = tuple(layout_encoder(query)) if isinstance(query, Tensor) else query
        with features_added(unet, features, strength):
            return unet(z_t, timestep, y, return_dict=False)[0]
    settings = {"conditioning_scale": strength, "return_dict": False}
    if query.shape[-2:] != z_t.shape[-2:]:
        # An image goes through the encoder's own call, which is what brings offloaded weights to the device.
        down, mid = layout_encoder(z_t, timestep, y, query, **settings)
    else:
        with stem_gives(layout_encoder, query):
            # The stem's output is replaced: what it sees only has to be small.
            blank = query.new_zeros(query.shape[0], 3, 8, 8)
            down, mid = layout_encoder(z_t, timestep, y, blank, **settings)
    residuals = {"down_block_additional_residuals": down, "mid_block_additional_residual": mid}
    return unet(z_t, timestep, y, return_dict=False, **residuals)[0]
