"""What running is like: nothing runs twice, it can be stopped, it shows previews, it survives unloading."""

from __future__ import annotations

import time

import pytest
import torch

from .events import Events
from .graph import SamplingGraph, calls
from .server import Server


def _graph(host: Server) -> SamplingGraph:
    graph = SamplingGraph(host)
    graph.context_conditionings()
    return graph


def test_the_same_pixels_after_everything_is_unloaded(host: Server) -> None:
    def pixels() -> torch.Tensor:
        graph = _graph(host)
        image = graph.add("VAEDecode", samples=graph.ours(4.0, 2.0)[0], vae=graph.vae)
        probe = graph.save(image[0])
        history = host.run(graph)
        return host.tensors(history, probe)["value"]

    first = pixels()
    host.free()
    # The server looks for the request between two prompts.
    time.sleep(2)
    assert torch.equal(pixels(), first)


def test_an_unchanged_graph_executes_nothing(host: Server) -> None:
    graph = _graph(host)
    # A seed of its own: what an earlier test sampled alike would be in the cache.
    sampler = graph.ours(4.0, 2.0, seed=20_312_03584)
    graph.save(sampler[0])
    graph.save(graph.custom(graph.guider(4.0, 2.0)[0])[0])

    def executed() -> list[str]:
        with Events(host) as events:
            seen = events.until_end(events.queue(graph))
        executing = [event["data"] for event in seen if isinstance(event, dict) and event["type"] == "executing"]
        return [data["node"] for data in executing if data["node"] is not None]

    assert sampler.id in executed()
    assert executed() == []


@pytest.mark.parametrize("text, context", [(3.0, 3.0), (4.0, 2.0)])
def test_interrupt_stops_within_a_step(host: Server, text: float, context: float) -> None:
    graph = _graph(host)
    graph.model, tag = graph.counted(wait=0.3)
    # Far more steps than it can reach before it hears of the interruption: the machine may be busy.
    sampler = graph.ours(text, context, steps=100)
    graph.save(sampler[0])
    with Events(host) as events:
        prompt_id = events.queue(graph)
        events.until_progress(sampler, 2)
        host.request("/interrupt", {})
        # Counted after the server took the request: if this process lags, it sees more, never fewer.
        begun = len(calls(host, tag))
        last = events.until_end(prompt_id)[-1]
    assert last["type"] == "execution_interrupted"
    assert last["data"]["node_type"] == "ContextDiffusionSampler"
    # The steps that had begun, and at most one that did not hear of it in time.
    assert 2 <= begun <= len(calls(host, tag)) <= begun + 1

    # And the next run is as if nothing had happened.
    graph = _graph(host)
    assert graph.latents(ours=graph.ours(text, context))["ours"].isfinite().all()


# Seeds that no other test has: a sampler whose result is in the cache tells of no steps.
@pytest.mark.parametrize("preview, seed", [("latent2rgb", 20_312_03585), ("none", 20_312_03586)])
def test_progress_and_previews(host: Server, preview: str, seed: int) -> None:
    def events_of(sampler: str) -> tuple[list[int], int]:
        graph = _graph(host)
        steps = {"steps": 6, "seed": seed}
        graph.save((graph.ours(4.0, 2.0, **steps) if sampler == "ours" else graph.ksampler(**steps))[0])
        with Events(host) as events:
            answer = host.post(
                "/prompt",
                {
                    "prompt": graph.nodes,
                    "client_id": events.client_id,
                    "extra_data": {"preview_method": preview},
                },
            )
            seen = events.until_end(answer["prompt_id"])
        values = [event["data"]["value"] for event in seen if isinstance(event, dict) and event["type"] == "progress"]
        # PREVIEW_IMAGE is 1, PREVIEW_IMAGE_WITH_METADATA is 4.
        return values, sum(isinstance(event, bytes) and event[3] in (1, 4) for event in seen)

    ours, hosts = events_of("ours"), events_of("host")
    if preview == "none":
        # Without pictures the host sends the first and the last step, and of the others what its clock lets through.
        for values, previews in (ours, hosts):
            assert (values[0], values[-1], previews) == (1, 6, 0)
            assert values == sorted(set(values))
    else:
        assert ours == hosts == ([1, 2, 3, 4, 5, 6], 6)
