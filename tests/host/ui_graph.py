"""A saved graph of the interface, as a prompt for the server.

People open and save graphs in the interface's format: nodes with positions, links and a bare list of widget values.
The server takes the API format: inputs by name. The interface does this in the browser; here it is done once more for
the tests, with the server's own `/object_info` for the names of the widgets. `test_browser.py` holds it to what the
real interface makes of the same file.
"""

from __future__ import annotations

from typing import Any

from .prompt import Link, Prompt

# Node modes as the interface saves them.
_MUTED, _BYPASSED = 2, 4
# Nodes that live in the browser alone.
_NOTES = {"Note", "MarkdownNote"}
_REROUTE, _PRIMITIVE = "Reroute", "PrimitiveNode"
_WIDGET_TYPES = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}


class UnknownNode(ValueError):
    """The graph has a node that the server does not know."""


def to_prompt(graph: dict[str, Any], object_info: dict[str, Any]) -> Prompt:
    """Turn a saved graph into a prompt.

    Args:
        graph: what the interface saved (schema version 0.4).
        object_info: what the server answers at `/object_info`.

    Returns:
        A prompt whose node ids are the graph's own.

    Raises:
        UnknownNode: a node type that is neither the server's nor one of the browser's own.
    """
    nodes = {node["id"]: node for node in graph["nodes"]}
    links = {link[0]: link for link in graph["links"]}
    prompt = Prompt()
    for node in sorted(nodes.values(), key=lambda node: node.get("order", 0)):
        kind = node["type"]
        if kind in _NOTES or kind in (_REROUTE, _PRIMITIVE) or node.get("mode", 0) in (_MUTED, _BYPASSED):
            continue
        if kind not in object_info:
            raise UnknownNode(f"node {node['id']} is a {kind!r}, which the server does not know")
        inputs = widget_values(node, object_info[kind])
        for socket in node.get("inputs", []):
            source = _source(links, nodes, object_info, socket.get("link"))
            if source is not None:
                inputs[socket["name"]] = source
        prompt.nodes[str(node["id"])] = {"class_type": kind, "inputs": inputs}
    return prompt


def widget_values(node: dict[str, Any], info: dict[str, Any]) -> dict[str, Any]:
    """The values of a node's widgets by name.

    The interface saves them without names, in the order of the schema, and puts values of its own between them: one
    behind a seed (what to do with it after a run) and one behind a file with an upload button.
    """
    saved = node.get("widgets_values") or []
    if isinstance(saved, dict):
        return dict(saved)
    values, at = {}, 0
    for name, kind, options in _widgets(info):
        if at >= len(saved):
            break
        values[name] = saved[at]
        at += 1
        seed = kind == "INT" and options.get("control_after_generate", name in ("seed", "noise_seed"))
        upload = any(options.get(key) for key in ("image_upload", "video_upload", "audio_upload"))
        if seed or (upload and at < len(saved) and saved[at] in ("image", "video", "audio", None, "")):
            at += 1
    return values


def _widgets(info: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    """(name, type, options) of the inputs that have a widget, in order."""
    return [entry for entry in _inputs(info) if _has_widget(*entry)]


def _inputs(info: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    """(name, type, options) of all inputs, in order: the required ones first."""
    inputs = []
    for part in ("required", "optional"):
        for name in info.get("input_order", {}).get(part, []):
            kind, *rest = info["input"][part][name]
            # A list of choices in place of a type is the older way to write a COMBO.
            inputs.append((name, "COMBO" if isinstance(kind, list) else kind, rest[0] if rest else {}))
    return inputs


def _has_widget(name: str, kind: str, options: dict[str, Any]) -> bool:
    return kind in _WIDGET_TYPES and not options.get("forceInput")


def _source(
    links: dict[int, list], nodes: dict[int, dict[str, Any]], object_info: dict[str, Any], link_id: int | None
) -> Any:
    """Where a link really starts: a connection, the value of a primitive, or None for nowhere."""
    while link_id is not None and link_id in links:
        _, node_id, slot, *_ = links[link_id]
        node = nodes[node_id]
        if node["type"] == _PRIMITIVE:
            return node["widgets_values"][0]
        if node["type"] == _REROUTE:
            link_id = node["inputs"][0].get("link")
        elif node.get("mode", 0) == _BYPASSED:
            link_id = _through(node, slot, object_info[node["type"]])
        elif node.get("mode", 0) == _MUTED:
            return None
        else:
            return Link([str(node_id), slot])
    return None


def _through(node: dict[str, Any], slot: int, info: dict[str, Any]) -> int | None:
    """The link that a bypassed node passes on at an output.

    It is that of the input opposite the output, else of the first input of the output's type. What counts is the order
    of the inputs as the server has them now, not as the graph was saved.
    """
    sockets = []
    for name, kind, _ in sorted(_inputs(info), key=lambda entry: _has_widget(*entry)):
        saved = [socket for socket in node.get("inputs", []) if socket["name"].partition(".")[0] == name]
        sockets += saved or [{"type": kind}]
    candidates = sockets[slot : slot + 1] + sockets
    return next((socket.get("link") for socket in candidates if socket["type"] == info["output"][slot]), None)
