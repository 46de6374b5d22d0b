"""The list of nodes that ComfyUI registers."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from . import conditioning, layout, loaders, sampling, visual_context
from .folders import register_folders


class ContextDiffusionExtension(ComfyExtension):
    """The pack's nodes, in the order in which a graph uses them."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        # Here and not in on_load, which the oldest hosts never call: the schemas list files.
        register_folders()
        modules = (loaders, visual_context, conditioning, layout, sampling)
        return [node for module in modules for node in module.NODES]
