"""The harness itself, on native nodes alone: what it reports is what the server did."""

from __future__ import annotations

import pytest
import torch

from .prompt import Prompt
from .server import NodeError, PromptRejected, Server


def test_a_graph_runs_and_its_tensor_comes_back(host: Server) -> None:
    prompt = Prompt()
    image = prompt.add("EmptyImage", width=8, height=4, batch_size=2, color=0xFF0000)
    probe = prompt.add("ProbeSave", value=image[0])
    history = host.run(prompt)
    saved = host.tensors(history, probe)["value"]
    assert torch.equal(saved, torch.tensor([1.0, 0.0, 0.0]).expand(2, 4, 8, 3))
    assert history.executed == {image.id, probe.id}


def test_an_unchanged_graph_executes_nothing(host: Server) -> None:
    prompt = Prompt()
    image = prompt.add("EmptyImage", width=8, height=8, batch_size=1, color=5)
    prompt.add("ProbeSave", value=image[0])
    host.run(prompt)
    assert host.run(prompt).executed == set()


def test_an_unknown_node_is_refused(host: Server) -> None:
    prompt = Prompt()
    prompt.add("NoSuchNode")
    with pytest.raises(PromptRejected):
        host.run(prompt)


def test_a_nodes_error_is_told(host: Server) -> None:
    prompt = Prompt()
    prompt.add("ProbeRaise", message="what went wrong")
    with pytest.raises(NodeError) as caught:
        host.run(prompt)
    assert (caught.value.node_type, caught.value.message) == ("ProbeRaise", "what went wrong")
