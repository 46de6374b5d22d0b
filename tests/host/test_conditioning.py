"""Combine Text and Visual Context against the host's own Apply Style Model, to 0.0."""

from __future__ import annotations

import pytest
import torch

from .graph import SamplingGraph, calls
from .prompt import Link, NodeRef, Prompt
from .server import Server
from .test_visual_context import clip_vision, encode, image, native, run

WIDTH, N_TOKENS = 24, 17  # 32 px in patches of 8, and the class token


def style_model(prompt: Prompt, n_tokens: int = N_TOKENS, redux: bool = False, vision: int = 16) -> Link:
    settings = {"vision_width": vision, "text_width": WIDTH, "n_tokens": n_tokens, "redux": redux}
    return prompt.add("ProbeStyleModel", settings)[0]


def text(prompt: Prompt, seed: int, tokens: int = 77, width: int = WIDTH, batch: int = 1, mask: str = "") -> Link:
    return prompt.add("ProbeText", seed=seed, width=width, tokens=tokens, batch=batch, mask=mask)[0]


def combine(prompt: Prompt, style: Link, strength: float = 1.0, **links: Link) -> NodeRef:
    return prompt.add("ContextDiffusionCombine", links, style_model=style, strength=strength)


def apply_style(prompt: Prompt, style: Link, conditioning: Link, context: Link, strength: float = 1.0) -> NodeRef:
    settings = {"strength": strength, "strength_type": "multiply"}
    return prompt.add(
        "StyleModelApply", settings, conditioning=conditioning, style_model=style, clip_vision_output=context
    )


def same(got: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> bool:
    """Whether two conditionings hold the same, bit for bit."""
    return got.keys() == expected.keys() and all(
        torch.equal(got[name], expected[name]) and got[name].dtype == expected[name].dtype for name in got
    )


@pytest.mark.parametrize("strength", [1.0, 0.35])
@pytest.mark.parametrize("redux", [False, True])
def test_positive_and_context_only_are_apply_style_model(host: Server, strength: float, redux: bool) -> None:
    prompt = Prompt()
    style = style_model(prompt, 0 if redux else N_TOKENS, redux)
    context = encode(prompt, clip_vision(prompt, siglip=redux), image(prompt, 1), image(prompt, 2))[0]
    positive, negative = text(prompt, 1), text(prompt, 2)
    ours = combine(prompt, style, strength, visual_context=context, positive=positive, negative=negative)
    got = run(
        host,
        prompt,
        positive=ours[0],
        context_only=ours[1],
        negative=ours[2],
        plain=negative,
        native_positive=apply_style(prompt, style, positive, context, strength)[0],
        native_negative=apply_style(prompt, style, negative, context, strength)[0],
    )
    assert same(got["positive"], got["native_positive"])
    assert same(got["context_only"], got["native_negative"])
    if redux:
        assert same(got["negative"], got["plain"])
    else:
        tokens = got["negative"]["0.0"]
        assert torch.equal(tokens[:, :77], got["plain"]["0.0"])
        assert tokens.shape == got["positive"]["0.0"].shape and not tokens[:, 77:].any()


@pytest.mark.parametrize("redux", [False, True])
def test_context_only_may_have_a_text_of_its_own(host: Server, redux: bool) -> None:
    prompt = Prompt()
    style = style_model(prompt, 0 if redux else N_TOKENS, redux)
    context = encode(prompt, clip_vision(prompt, siglip=redux), image(prompt, 1))[0]
    texts = {"positive": text(prompt, 1), "negative": text(prompt, 2)}
    own = text(prompt, 3)
    ours = combine(prompt, style, visual_context=context, context_only=own, **texts)
    shared = combine(prompt, style, visual_context=context, **texts)
    got = run(
        host, prompt, **{f"ours{i}": ours[i] for i in range(3)}, **{f"shared{i}": shared[i] for i in (0, 2)},
        native=apply_style(prompt, style, own, context)[0],
    )  # fmt: skip
    assert same(got["ours1"], got["native"])
    assert same(got["ours0"], got["shared0"]) and same(got["ours2"], got["shared2"])


def test_style_models_of_a_kind_that_nobody_knows(host: Server) -> None:
    prompt = Prompt()
    style = prompt.add("ProbeStyleModel", vision_width=16, text_width=WIDTH, n_tokens=0, redux=False, resampler=True)[0]
    context = encode(prompt, clip_vision(prompt), image(prompt, 1))[0]
    positive = text(prompt, 1)
    ours = combine(prompt, style, visual_context=context, positive=positive, negative=text(prompt, 2))
    got = run(host, prompt, ours=ours[0], native=apply_style(prompt, style, positive, context)[0])
    assert same(got["ours"], got["native"])


def test_strength_0_is_no_visual_context(host: Server) -> None:
    prompt = Prompt()
    texts = {"positive": text(prompt, 1), "negative": text(prompt, 2)}
    context = encode(prompt, clip_vision(prompt), image(prompt, 1), image(prompt, 2), aggregation="concat")[0]
    for n_tokens in (N_TOKENS, 0):
        style = style_model(prompt, n_tokens)
        off = combine(prompt, style, 0.0, visual_context=context, **texts)
        none = combine(prompt, style, **texts)
        got = run(host, prompt, **{f"off{i}": off[i] for i in range(3)}, **{f"none{i}": none[i] for i in range(3)})
        for i in range(3):
            assert same(got[f"off{i}"], got[f"none{i}"])
            tokens = got[f"off{i}"]["0.0"]
            assert tokens.shape == (1, 77 + n_tokens, WIDTH) and not tokens[:, 77:].any()
        assert same(got["off1"], got["off2"])


@pytest.mark.parametrize("aggregation", ["concat", "native batch"])
def test_tokens_of_every_image_make_the_null_context_longer(host: Server, aggregation: str) -> None:
    prompt = Prompt()
    encoder, batch = clip_vision(prompt), image(prompt, 3, batch=3)
    context = (
        native(prompt, encoder, batch)
        if "native" in aggregation
        else encode(prompt, encoder, batch, aggregation="concat")
    )
    style, positive, negative = style_model(prompt), text(prompt, 1), text(prompt, 2)
    ours = combine(prompt, style, visual_context=context[0], positive=positive, negative=negative)
    native_positive = apply_style(prompt, style, positive, context[0])
    got = run(host, prompt, positive=ours[0], context_only=ours[1], negative=ours[2], native=native_positive[0])
    assert same(got["positive"], got["native"])
    lengths = {got[name]["0.0"].shape[1] for name in ("positive", "context_only", "negative")}
    assert lengths == {77 + 3 * N_TOKENS}
    assert not got["negative"]["0.0"][:, 77:].any()


@pytest.mark.parametrize("tokens", [(77, 154), (154, 77), (231, 154), (77, 100)])
def test_long_texts(host: Server, tokens: tuple[int, int]) -> None:
    prompt = Prompt()
    context = encode(prompt, clip_vision(prompt), image(prompt, 1))[0]
    links = {"positive": text(prompt, 1, tokens[0]), "negative": text(prompt, 2, tokens[1])}
    ours = combine(prompt, style_model(prompt), visual_context=context, **links)
    got = run(host, prompt, out0=ours[0], out1=ours[1], out2=ours[2], **links)
    longest = max(tokens) if 100 not in tokens else None
    for i, source in enumerate(("positive", "negative", "negative")):
        out, plain = got[f"out{i}"]["0.0"], got[source]["0.0"]
        length = longest or plain.shape[1]
        assert out.shape[1] == length + N_TOKENS
        assert torch.equal(out[:, :length], plain[:, torch.arange(length) % plain.shape[1]])


@pytest.mark.parametrize("mask", ["", "bool", "bias"])
def test_everything_else_in_every_entry_stays(host: Server, mask: str) -> None:
    prompt = Prompt()
    area = prompt.add(
        "ConditioningSetArea", conditioning=text(prompt, 1, mask=mask), width=64, height=64, x=0, y=8, strength=0.7
    )
    both = prompt.add("ConditioningCombine", conditioning_1=area[0], conditioning_2=text(prompt, 2, batch=1, mask=mask))
    ranged = prompt.add("ConditioningSetTimestepRange", conditioning=both[0], start=0.1, end=0.9)[0]
    negative = text(prompt, 3, mask=mask)
    style, context = style_model(prompt), encode(prompt, clip_vision(prompt), image(prompt, 1))[0]
    ours = combine(prompt, style, visual_context=context, positive=ranged, negative=negative)
    expected = apply_style(prompt, style, ranged, context)
    got = run(host, prompt, ours=ours[0], native=expected[0], negative=ours[2])
    assert {"0.1.strength", "1.1.start_percent", "1.1.pooled_output", "0.1.guidance"} <= got["native"].keys()
    assert ("0.1.attention_mask" in got["native"]) == bool(mask)
    assert same(got["ours"], got["native"])
    if mask:
        assert got["negative"]["0.1.attention_mask"].shape[-1] == 77 + N_TOKENS + 6


def test_text_batches(host: Server) -> None:
    prompt = Prompt()
    context = encode(prompt, clip_vision(prompt), image(prompt, 1))[0]
    links = {"positive": text(prompt, 1, batch=3), "negative": text(prompt, 2)}
    ours = combine(prompt, style_model(prompt), visual_context=context, **links)
    got = run(host, prompt, ours=ours[0], plain=links["positive"])
    tokens = got["ours"]["0.0"]
    assert tokens.shape == (3, 77 + N_TOKENS, WIDTH) and torch.equal(tokens[:, :77], got["plain"]["0.0"])
    assert torch.equal(tokens[0, 77:], tokens[2, 77:])


def test_missing_texts_are_the_empty_text(host: Server) -> None:
    graph = SamplingGraph(host)
    empty, ugly = graph.text(""), graph.text("ugly")
    context = encode(graph, graph.clip_vision, graph.image(1))[0]
    shared = {"visual_context": context}
    written = combine(graph, graph.style_model, **shared, positive=empty, negative=empty)
    cases = {
        "clip": combine(graph, graph.style_model, **shared, clip=graph.clip),
        "negative": combine(graph, graph.style_model, **shared, negative=empty),
        "positive": combine(graph, graph.style_model, **shared, positive=empty, clip=graph.clip),
    }
    with_ugly = combine(graph, graph.style_model, **shared, negative=ugly, clip=graph.clip)
    expected_ugly = combine(graph, graph.style_model, **shared, positive=empty, negative=ugly)
    pairs = {name: (node, written) for name, node in cases.items()} | {"ugly": (with_ugly, expected_ugly)}
    links = {f"{name} {i} {j}": pair[j][i] for name, pair in pairs.items() for i in range(3) for j in range(2)}
    got = run(host, graph, **links)
    for name in pairs:
        for i in range(3):
            assert same(got[f"{name} {i} 0"], got[f"{name} {i} 1"]), (name, i)


@pytest.mark.parametrize("prompt_text", ["a red flag", "a red flag on a white tent by the sea, " * 12])
def test_the_branches_run_in_one_call(host: Server, prompt_text: str) -> None:
    graph = SamplingGraph(host)
    graph.positive = graph.text(prompt_text)
    graph.context_conditionings()
    model, tag = graph.counted()
    three = graph.ours(3.0, 2.0, model=model, steps=2)
    graph.save(three[0])
    host.run(graph)
    assert calls(host, tag) == [3, 3]
