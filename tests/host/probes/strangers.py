"""Parts that do not belong to our models, for the checks that must refuse them."""

from __future__ import annotations

import comfy.controlnet
import comfy.model_management
import comfy.ops
import torch
from comfy.cldm.cldm import ControlNet
from comfy_api.latest import io


class ProbeConditioning(io.ComfyNode):
    """Random text of any width; with 0 tokens, an entry without text."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ProbeConditioning",
            category="probes",
            inputs=[io.Int.Input("width"), io.Int.Input("tokens", default=77)],
            outputs=[io.Conditioning.Output()],
        )

    @classmethod
    def execute(cls, width: int, tokens: int) -> io.NodeOutput:
        text = torch.randn(1, tokens, width, generator=torch.Generator().manual_seed(0))
        return io.NodeOutput([[text if tokens else None, {}]])


class ProbeControlNet(io.ComfyNode):
    """A ControlNet of the Stable Diffusion kind with random weights."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ProbeControlNet",
            category="probes",
            inputs=[
                io.Int.Input("latent_channels", default=4),
                io.Int.Input("channels", default=32),
                io.Int.Input("levels", default=4),
                io.Int.Input("context_width", default=768),
            ],
            outputs=[io.ControlNet.Output()],
        )

    @classmethod
    def execute(cls, latent_channels: int, channels: int, levels: int, context_width: int) -> io.NodeOutput:
        network = ControlNet(
            image_size=32,
            in_channels=latent_channels,
            model_channels=channels,
            hint_channels=3,
            num_res_blocks=[1] * levels,
            channel_mult=(1, 2, 2, 4)[:levels],
            num_heads=4,
            use_spatial_transformer=True,
            transformer_depth=[0] + [1] * (levels - 1),
            transformer_depth_middle=1,
            context_dim=context_width,
            operations=comfy.ops.manual_cast,
        )
        device = comfy.model_management.get_torch_device()
        return io.NodeOutput(comfy.controlnet.ControlNet(network, load_device=device))


NODES = [ProbeConditioning, ProbeControlNet]
