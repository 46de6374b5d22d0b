"""Damaged files through the nodes that read them: a picture of what was saved, or one line of ours at the node."""

from __future__ import annotations

import torch

from tests.core.checkpoint import fuzz

from .prompt import Prompt
from .server import NodeError, Server

# With a host that is busy, a graph takes a good second.
COUNT, SEED = 100, 3


def test_two_hundred_damaged_files(host: Server) -> None:
    faults = []
    for kind, folder, node, output in (
        ("style", "visual_context", "ContextDiffusionLoadVisualContext", "last_hidden_state"),
        ("checkpoint", "context_diffusion", "ContextDiffusionLoader", None),
    ):
        path = fuzz.MAKERS[kind](host.base / "models" / folder / "damaged.safetensors")
        content = path.read_bytes()
        whole, expected = _load(host, node, output)
        assert whole == ""
        for number in range(COUNT):
            case = fuzz.damage(content, SEED, number)
            path.write_bytes(case.content)
            fault, tensors = _load(host, node, output)
            if tensors is not None and case.carries_checksum and not torch.equal(tensors, expected):
                fault = "taken with other values in it"
            faults += [f"{kind} {number} ({case.damage}): {fault}"] if fault else []
        path.unlink()
    assert host.process.poll() is None and not faults, "\n".join(faults)


def _load(host: Server, node: str, output: str | None) -> tuple[str, torch.Tensor | None]:
    """What is wrong with how the node ends, and the feature that it gives, None for an error of ours."""
    prompt = Prompt()
    name = "model_name" if node.endswith("Loader") else "name"
    loaded = prompt.add(node, {}, **{name: "damaged.safetensors"})
    probe = prompt.add("ProbeSave", value=loaded[0])
    try:
        history = host.run(prompt, 30)
    except NodeError as error:
        ours = error.node_type == node and error.exception_type.endswith("ContextDiffusionError")
        shown = error.message.isprintable() and len(error.message) < 2000
        return "" if ours and shown else f"{error.node_type} {error.exception_type}: {error.message[:300]!r}", None
    return "", host.tensors(history, probe)[output] if output and probe.id in history.outputs else None
