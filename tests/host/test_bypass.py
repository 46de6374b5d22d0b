"""Bypassed nodes, and graphs that were saved before a socket moved: what the interface makes of them.

The interface bypasses a node by the place of its sockets, and takes the links of a saved graph by the names of inputs
and the places of outputs; people mean the names. `test_browser.py` holds the real interface to the same.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from .make_thumbnails import images_of
from .prompt import Prompt
from .server import Server
from .test_workflows import ALL, WORKFLOWS
from .ui_graph import to_prompt

_BYPASSED = 4
# Templates of the first release, as they were then: Apply Query Layout and Combine had their inputs in another order,
# Encode Visual Context had fewer.
SAVED = sorted((Path(__file__).parent / "saved_workflows").glob("*.json"))
# What a bypassed node of ours gives at an output of another name than the input's; else it is the same name or nothing.
STANDS_FOR = {
    ("ContextDiffusionApplyQueryLayout", "map"): "image",
    ("ContextDiffusionLayoutMap", "map"): "image",
    ("ContextDiffusionEncodeVisualContext", "seen"): "images.image0",
    ("ContextDiffusionSampler", "LATENT"): "latent_image",
}


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def our_nodes(graph: dict[str, Any]) -> list[int]:
    """The ids of our nodes that run."""
    return [node["id"] for node in graph["nodes"] if node["type"].startswith("ContextDiffusion") and not node["mode"]]


def bypass(graph: dict[str, Any], node_id: int) -> dict[str, Any]:
    """The graph with one node bypassed."""
    nodes = [{**node, "mode": _BYPASSED} if node["id"] == node_id else node for node in graph["nodes"]]
    return {**graph, "nodes": nodes}


def without(prompt: dict[str, dict], node_id: str, object_info: dict[str, Any]) -> dict[str, dict]:
    """The prompt without a node: what it took, by name, goes where its outputs went."""
    removed = prompt[node_id]
    names = object_info[removed["class_type"]]["output_name"]
    rest = {}
    for other_id, node in prompt.items():
        inputs = {}
        for name, value in node["inputs"].items():
            if isinstance(value, list) and value[0] == node_id:
                output = names[value[1]]
                value = removed["inputs"].get(STANDS_FOR.get((removed["class_type"], output), output))
            if value is not None:
                inputs[name] = value
        rest[other_id] = {"class_type": node["class_type"], "inputs": inputs}
    del rest[node_id]
    return rest


def links_by_name(graph: dict[str, Any]) -> dict[tuple[str, str], tuple[str, str]]:
    """(node, input) -> (node, output) of every link, by the names that the saved graph itself has."""
    nodes = {node["id"]: node for node in graph["nodes"]}
    named = {}
    for _, source, output, target, slot, _ in graph["links"]:
        names = nodes[target]["inputs"][slot]["name"], nodes[source]["outputs"][output]["name"]
        named[str(target), names[0]] = (str(source), names[1])
    return named


def links_of(prompt: dict[str, dict], object_info: dict[str, Any]) -> dict[tuple[str, str], tuple[str, str]]:
    """The same of a prompt, by the names that the outputs have today."""
    return {
        (node_id, name): (value[0], object_info[prompt[value[0]]["class_type"]]["output_name"][value[1]])
        for node_id, node in prompt.items()
        for name, value in node["inputs"].items()
        if isinstance(value, list)
    }


@pytest.mark.parametrize("path", ALL + SAVED, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_bypassed_node_is_as_if_it_were_not_there(host: Server, path: Path) -> None:
    info, graph = host.get("/object_info"), read(path)
    whole = to_prompt(graph, info).nodes
    assert our_nodes(graph)
    for node_id in our_nodes(graph):
        bypassed = to_prompt(bypass(graph, node_id), info).nodes
        assert bypassed == without(whole, str(node_id), info), whole[str(node_id)]["class_type"]


@pytest.mark.parametrize("path", SAVED, ids=lambda path: path.stem)
def test_graphs_saved_before_mean_what_they_meant(host: Server, path: Path) -> None:
    info, graph = host.get("/object_info"), read(path)
    prompt = to_prompt(graph, info).nodes
    assert links_of(prompt, info) == links_by_name(graph)
    today = to_prompt(read(WORKFLOWS / path.name), info).nodes
    assert {name for name, _ in links_by_name(graph)} <= today.keys()


@pytest.mark.slow
def test_a_template_with_bypassed_nodes_runs(host: Server) -> None:
    """With a scale each for text and context, which needs all three conditionings."""
    graph = read(WORKFLOWS / "05 Full moon over our camp, East Greenland.json")
    nodes = {node["type"]: node["id"] for node in graph["nodes"]}
    pictures = []
    for kinds in ([], ["Combine"], ["ApplyQueryLayout"], ["ApplyQueryLayout", "Combine"]):
        bypassed = graph
        for kind in kinds:
            bypassed = bypass(bypassed, nodes[f"ContextDiffusion{kind}"])
        prompt = Prompt()
        prompt.nodes = to_prompt(bypassed, host.get("/object_info")).nodes
        saved, _ = images_of(host, host.run(prompt))
        pictures += [image.tobytes() for image in saved]
    assert len(set(pictures)) == 4
