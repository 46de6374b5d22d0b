"""The ComfyUI nodes: thin, on native sockets, over the core in `context_diffusion`.

Importing this package costs nothing and needs no ComfyUI, so that tools which walk the repository can do it; what
needs the host is imported when the host asks for the nodes.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from .host_version import too_old

if TYPE_CHECKING:
    from comfy_api.latest import ComfyExtension

_TOO_OLD = too_old()
if _TOO_OLD:
    # Here and not in the entry point, which the oldest hosts never call.
    logging.getLogger(__name__).error(_TOO_OLD)


async def comfy_entrypoint() -> ComfyExtension:
    """What ComfyUI calls once at start-up, for the nodes."""
    if _TOO_OLD:
        return _without_nodes()
    from .extension import ContextDiffusionExtension

    return ContextDiffusionExtension()


def _without_nodes() -> ComfyExtension:
    """An extension that is loaded in peace: the line in the log says why it has no nodes."""
    from comfy_api.latest import ComfyExtension

    class WithoutNodes(ComfyExtension):
        async def get_node_list(self) -> list:
            return []

    return WithoutNodes()
