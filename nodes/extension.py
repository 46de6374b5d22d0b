"""The list of nodes that ComfyUI registers."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from . import (
    combine,
    encode_visual_context,
    example_images,
    layout_map,
    load_model,
    query_layout,
    sampler,
    style_files,
)
from .folders import register_folders


class ContextDiffusionExtension(ComfyExtension):
    """The pack's nodes, in the order in which a graph uses them."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        # Here and not in on_load, which the oldest hosts never call: the schemas list files.
        register_folders()
        modules = (
            load_model,
            example_images,
            encode_visual_context,
            style_files,
            combine,
            query_layout,
            layout_map,
            sampler,
        )
        return [node for module in modules for node in module.NODES]
