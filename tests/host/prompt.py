"""A graph in the server's API format, built by function calls."""

from __future__ import annotations

from typing import Any


class Link(list):
    """[node id, output index]: what the server takes for a connection."""


class NodeRef:
    """A node of a prompt; `ref[i]` is a connection from its output i."""

    def __init__(self, node_id: str) -> None:
        self.id = node_id

    def __getitem__(self, output: int) -> Link:
        if output < 0 or output > 64:
            raise IndexError(output)
        return Link([self.id, output])


class Prompt:
    """Nodes in the order they were added.

    `p.add("KSampler", model=loader[0], seed=1, ...)` adds a node; names with a dot, such as an autogrow input's
    `images.image0`, go into `inputs`.
    """

    def __init__(self) -> None:
        self.nodes: dict[str, dict[str, Any]] = {}

    def add(self, class_type: str, inputs: dict[str, Any] | None = None, **more: Any) -> NodeRef:
        """Add a node; its inputs are values or connections."""
        node_id = str(len(self.nodes) + 1)
        self.nodes[node_id] = {"class_type": class_type, "inputs": {**(inputs or {}), **more}}
        return NodeRef(node_id)
