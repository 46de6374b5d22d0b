"""Apply Query Layout against the host's own Apply ControlNet, to 0.0; maps against the core's."""

from __future__ import annotations

import pytest
import torch

from context_diffusion.maps import make_map

from .graph import SamplingGraph, calls, relative
from .prompt import Link, NodeRef, Prompt
from .server import NodeError, Server
from .test_visual_context import image, run

MAPS = {"canny": "canny", "soft edge": "softedge", "depth": "depth", "normal": "normal", "scribble": "scribble"}


def layout(graph: SamplingGraph, picture: Link, third: bool = True, **changes: object) -> NodeRef:
    settings = {"map": "none", "strength": 1.0, "start_percent": 0.0, "end_percent": 1.0, **changes}
    links = {"positive": graph.positive, "negative": graph.negative, "control_net": graph.control_net}
    if third:
        links["context_only"] = graph.context_only
    return graph.add("ContextDiffusionApplyQueryLayout", {**links, **settings}, image=picture)


def native(graph: SamplingGraph, picture: Link, positive: Link, negative: Link, **changes: object) -> NodeRef:
    settings = {"strength": 1.0, "start_percent": 0.0, "end_percent": 1.0, **changes}
    return graph.add(
        "ControlNetApplyAdvanced", settings, positive=positive, negative=negative, control_net=graph.control_net,
        image=picture,
    )  # fmt: skip


@pytest.mark.parametrize(
    "settings", [{}, {"strength": 0.6, "start_percent": 0.1, "end_percent": 0.7}, {"map": "soft edge"}]
)
def test_it_is_apply_control_net(host: Server, settings: dict) -> None:
    graph = SamplingGraph(host, batch_size=2)
    picture = image(graph, 1, batch=2, height=128, width=128)
    ours = layout(graph, picture, **settings)
    shown = picture
    if "map" in settings:
        shown = graph.add("ContextDiffusionLayoutMap", image=picture, map=settings["map"])[0]
    numbers = {name: value for name, value in settings.items() if name != "map"}
    theirs = native(graph, shown, graph.positive, graph.negative, **numbers)
    third = native(graph, shown, graph.context_only, graph.negative, **numbers)
    got = graph.latents(
        ours=graph.ksampler(positive=ours[0], negative=ours[2]),
        native=graph.ksampler(positive=theirs[0], negative=theirs[1]),
        ours_third=graph.ksampler(positive=ours[1], negative=ours[2]),
        native_third=graph.ksampler(positive=third[0], negative=third[1]),
        without=graph.ksampler(),
    )
    assert torch.equal(got["ours"], got["native"]) and torch.equal(got["ours_third"], got["native_third"])
    assert relative(got["ours"], got["without"]) > 0.01


@pytest.mark.parametrize(
    "settings",
    [{"strength": 0.0}, {"start_percent": 0.5, "end_percent": 0.5}, {"start_percent": 0.6, "end_percent": 0.2}]
    + [{"start_percent": 0.0, "end_percent": 0.0}],
)
def test_no_strength_and_no_time_are_no_control(host: Server, settings: dict) -> None:
    graph = SamplingGraph(host)
    ours = layout(graph, graph.image(1), **settings)
    got = graph.latents(
        off=graph.ours(3.0, 2.0, positive=ours[0], context_only=ours[1], negative=ours[2]), none=graph.ours(3.0, 2.0)
    )
    assert torch.equal(got["off"], got["none"])


def test_control_models_are_stacked(host: Server) -> None:
    graph = SamplingGraph(host)
    first, second = graph.image(1), graph.image(2)
    once = native(graph, first, graph.positive, graph.negative, strength=0.5)
    twice = native(graph, second, once[0], once[1], strength=0.8)
    plain = {"positive": graph.positive, "negative": graph.negative}
    graph.positive, graph.negative = once[0], once[1]
    ours = layout(graph, second, third=False, strength=0.8)
    got = graph.latents(
        ours=graph.ksampler(positive=ours[0], negative=ours[2]),
        native=graph.ksampler(positive=twice[0], negative=twice[1]),
        once=graph.ksampler(),
        none=graph.ksampler(**plain),
    )
    assert torch.equal(got["ours"], got["native"])
    assert relative(got["ours"], got["once"]) > 0.01 and relative(got["once"], got["none"]) > 0.01


def test_three_branches_with_control_run_in_one_call(host: Server) -> None:
    graph = SamplingGraph(host)
    graph.apply_layout()
    model, tag = graph.counted()
    graph.save(graph.ours(3.0, 2.0, model=model, steps=2)[0])
    host.run(graph)
    assert calls(host, tag) == [3, 3]


def test_context_only_may_be_left_out(host: Server) -> None:
    graph = SamplingGraph(host)
    ours = layout(graph, graph.image(1), third=False)
    graph.positive, graph.context_only, graph.negative = (ours[i] for i in range(3))
    graph.latents(equal=graph.ours())
    other = graph.ours(3.0, 2.0)
    graph.save(other[0])
    with pytest.raises(NodeError, match="context_only"):
        host.run(graph)


def test_more_queries_than_latents_are_refused(host: Server) -> None:
    graph = SamplingGraph(host, batch_size=2)
    ours = layout(graph, image(graph, 1, batch=3, height=128, width=128))
    graph.save(graph.ours(positive=ours[0], context_only=ours[1], negative=ours[2])[0])
    with pytest.raises(
        NodeError, match="positive has 3 query images and latent_image 2 latents.*batch_size 3"
    ) as caught:
        host.run(graph)
    assert caught.value.node_type == "ContextDiffusionSampler"


@pytest.mark.parametrize("name", MAPS)
def test_maps_are_the_cores(host: Server, name: str) -> None:
    prompt = Prompt()
    picture = image(prompt, 1, batch=2, height=48, width=64)
    ours = prompt.add("ContextDiffusionLayoutMap", image=picture, map=name)
    got = run(host, prompt, picture=picture, ours=ours[0])
    expected = make_map(got["picture"]["value"].movedim(-1, 1), MAPS[name]).movedim(1, -1)
    torch.testing.assert_close(got["ours"]["value"], expected, rtol=0, atol=1e-6)


def test_map_size_is_the_shorter_side(host: Server) -> None:
    prompt = Prompt()
    picture = image(prompt, 1, height=90, width=60)
    links = {
        f"{name} {size}": prompt.add("ContextDiffusionLayoutMap", image=picture, map=name, map_size=size)[0]
        for name in ("none", "soft edge")
        for size in (0, 32)
    }
    got = {name: value["value"] for name, value in run(host, prompt, picture=picture, **links).items()}
    assert torch.equal(got["none 0"], got["picture"])
    assert got["soft edge 0"].shape == (1, 90, 60, 3)
    assert got["none 32"].shape == got["soft edge 32"].shape == (1, 48, 32, 3)


def test_the_map_is_made_at_the_layout_encoders_size(host: Server) -> None:
    graph = SamplingGraph(host)
    large = graph.image(1, 512)
    links = {name: layout(graph, large, map=name)[3] for name in ("none", "canny")}
    links["given"] = layout(graph, large, map="canny", map_size=256)[3]
    got = {name: value["value"].shape[1] for name, value in run(host, graph, **links).items()}
    assert got == {"none": 512, "canny": 128, "given": 256}


def test_grey_and_transparent_queries(host: Server) -> None:
    prompt = Prompt()
    pictures = {channels: image(prompt, 2, channels=channels) for channels in (1, 4)}
    nodes = {c: prompt.add("ContextDiffusionLayoutMap", image=link, map="none") for c, link in pictures.items()}
    got = run(host, prompt, grey=nodes[1][0], alpha=nodes[4][0], plain=pictures[1], rgba=pictures[4])
    assert torch.equal(got["grey"]["value"], got["plain"]["value"].expand(-1, -1, -1, 3))
    rgba = got["rgba"]["value"]
    white = rgba[..., :3] * rgba[..., 3:] + (1 - rgba[..., 3:])
    torch.testing.assert_close(got["alpha"]["value"], white)


def test_a_map_whose_package_is_missing_is_said(host: Server) -> None:
    """scikit-image is not among what ComfyUI brings."""
    prompt = Prompt()
    node = prompt.add("ContextDiffusionLayoutMap", image=image(prompt, 1), map="segmentation")
    try:
        got = run(host, prompt, map=node[0])["map"]["value"]
    except NodeError as error:
        assert "pip install scikit-image" in error.message and error.node_type == "ContextDiffusionLayoutMap"
    else:
        assert got.shape == (1, 40, 40, 3)
