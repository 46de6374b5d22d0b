"""Probe nodes: a second pack that the tests put beside ours, to look at what flows through the sockets."""

from comfy_api.latest import ComfyExtension, io

from .calls import NODES as CALLS_NODES
from .networks import NODES as NETWORK_NODES
from .paging import NODES as PAGING_NODES
from .parts import NODES as PARTS_NODES
from .save import NODES as SAVE_NODES
from .strangers import NODES as STRANGER_NODES


class Probes(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [*SAVE_NODES, *CALLS_NODES, *NETWORK_NODES, *PAGING_NODES, *PARTS_NODES, *STRANGER_NODES]


async def comfy_entrypoint() -> Probes:
    return Probes()
