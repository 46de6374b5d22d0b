"""Wrong input to the context nodes: one message, at the node, that names both sides and the connection to change."""

from __future__ import annotations

import pytest

from .prompt import Link, NodeRef, Prompt
from .server import NodeError, Server
from .test_conditioning import WIDTH, combine, style_model, text
from .test_visual_context import clip_vision, encode, image

ENCODE, COMBINE = "ContextDiffusionEncodeVisualContext", "ContextDiffusionCombine"
LAYOUT, MAP = "ContextDiffusionApplyQueryLayout", "ContextDiffusionLayoutMap"

BAD_IMAGES = {
    "mask": ({"kind": "mask"}, ["(1, 40, 40)", "mask", "Convert Mask to Image"]),
    "empty": ({"batch": 0}, ["(0, ", "empty", "at least one image"]),
    "NaN": ({"kind": "nan", "batch": 2}, ["NaN", "VAE Decode"]),
    "8 bit": ({"kind": "8 bit"}, ["expected [0, 1]"]),
    "channels first": ({"kind": "channels first"}, ["(1, 3, 40, 40)", "channels come second"]),
    "five channels": ({"channels": 5}, ["(1, 40, 40, 5)", "1, 3 or 4 channels"]),
}


def fails(server: Server, prompt: Prompt, link: Link, node_type: str, *words: str) -> str:
    """Run the graph: it must fail at that node, in one line with these words."""
    prompt.add("ProbeSave", value=link)
    with pytest.raises(NodeError) as caught:
        server.run(prompt)
    error = caught.value
    assert error.node_type == node_type, error
    assert error.exception_type.endswith("ContextDiffusionError"), error
    assert "\n" not in error.message and all(word in error.message for word in words), error.message
    return error.message


@pytest.mark.parametrize("kind", BAD_IMAGES)
def test_images(host: Server, kind: str) -> None:
    settings, words = BAD_IMAGES[kind]
    prompt = Prompt()
    node = encode(prompt, clip_vision(prompt), image(prompt, 1), image(prompt, 2, **settings))
    fails(host, prompt, node[0], ENCODE, "image1", *words)
    prompt = Prompt()
    node = prompt.add("ContextDiffusionLayoutMap", image=image(prompt, 2, **settings), map="canny")
    fails(host, prompt, node[0], MAP, "image", *words)
    prompt = Prompt()
    node = layout(prompt, image=image(prompt, 2, **settings))
    fails(host, prompt, node[0], LAYOUT, "image", *words)


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ("1", ["1 numbers", "2 inputs", "image0, image1"]),
        ("1, x", ["'1, x'", "one number an input"]),
        ("1, -1", ["-1.0", "a number from 0 to 1000"]),
        ("0, 0", ["not all zero"]),
        ("1, nan", ["nan", "a number from 0 to 1000"]),
    ],
)
def test_weights(host: Server, weights: str, words: list[str]) -> None:
    prompt = Prompt()
    node = encode(prompt, clip_vision(prompt), image(prompt, 1), image(prompt, 2, batch=2), weights=weights)
    fails(host, prompt, node[0], ENCODE, "weights", *words)


def test_no_image_at_all(host: Server) -> None:
    prompt = Prompt()
    fails(host, prompt, encode(prompt, clip_vision(prompt))[0], ENCODE, "no context image", "connect at least one")


def test_parts_that_a_loader_did_not_have(host: Server) -> None:
    prompt = Prompt()
    nothing = prompt.add("ProbeNothing")
    fails(host, prompt, encode(prompt, nothing[0], image(prompt, 1))[0], ENCODE, "clip_vision is empty", "connect")
    prompt = Prompt()
    nothing = prompt.add("ProbeNothing")
    node = combine(prompt, nothing[1], positive=text(prompt, 1), negative=text(prompt, 2))
    fails(host, prompt, node[0], COMBINE, "style_model is empty", "connect STYLE_MODEL")
    prompt = Prompt()
    nothing = prompt.add("ProbeNothing")
    fails(host, prompt, layout(prompt, control_net=nothing[2])[0], LAYOUT, "control_net is empty", "connect")


@pytest.mark.parametrize("name", ["negative", "control_net", "image"])
def test_a_layout_with_an_input_not_connected(host: Server, name: str) -> None:
    prompt = Prompt()
    node = layout(prompt)
    del prompt.nodes[node.id]["inputs"][name]
    fails(host, prompt, node[0], LAYOUT, name, "connect")


def test_texts_without_a_style_model(host: Server) -> None:
    prompt = Prompt()
    texts = {"positive": text(prompt, 1), "negative": text(prompt, 2)}
    node = prompt.add("ContextDiffusionCombine", texts, strength=1.0)
    fails(host, prompt, node[0], COMBINE, "style_model is empty", "nothing is connected", "connect STYLE_MODEL")


@pytest.mark.parametrize("redux", [False, True])
def test_an_image_encoder_of_another_width(host: Server, redux: bool) -> None:
    prompt = Prompt()
    context = encode(prompt, clip_vision(prompt, width=32), image(prompt, 1))[0]
    links = {"visual_context": context, "positive": text(prompt, 1), "negative": text(prompt, 2)}
    node = combine(prompt, style_model(prompt, redux=redux), **links)
    fails(
        host, prompt, node[0], COMBINE, "visual_context is 32 wide", "style_model reads 16", "connect the CLIP_VISION"
    )


@pytest.mark.parametrize("which", ["positive", "context_only", "negative"])
@pytest.mark.parametrize("with_context", [False, True])
def test_text_of_another_family(host: Server, which: str, with_context: bool) -> None:
    prompt = Prompt()
    links = {"positive": text(prompt, 1), "negative": text(prompt, 2)}
    links[which] = text(prompt, 3, width=48)
    if with_context:
        links["visual_context"] = encode(prompt, clip_vision(prompt), image(prompt, 1))[0]
    node = combine(prompt, style_model(prompt), **links)
    words = (f"{which} is text 48 wide", f"context {WIDTH} wide", "connect the CLIP and the STYLE_MODEL")
    fails(host, prompt, node[0], COMBINE, *words)


def test_neither_text_nor_context(host: Server) -> None:
    prompt = Prompt()
    node = combine(prompt, style_model(prompt), negative=text(prompt, 1))
    fails(host, prompt, node[0], COMBINE, "neither a text nor a visual context", "to positive", "to visual_context")


def test_an_empty_context_of_unknown_length(host: Server) -> None:
    prompt = Prompt()
    node = combine(prompt, style_model(prompt, -1), positive=text(prompt, 1), negative=text(prompt, 2))
    fails(host, prompt, node[0], COMBINE, "without an image encoder", "to visual_context", "strength to 0")


def test_no_text_to_steer_away_from(host: Server) -> None:
    prompt = Prompt()
    node = combine(prompt, style_model(prompt), positive=text(prompt, 1))
    fails(host, prompt, node[0], COMBINE, "negative is not connected", "CLIP", "clip")


def layout(prompt: Prompt, **changes: object) -> NodeRef:
    network = {"latent_channels": 4, "channels": 32, "levels": 2, "context_width": WIDTH}
    inputs = {
        "positive": text(prompt, 1), "negative": text(prompt, 2), "image": image(prompt, 1), "map": "none",
        "control_net": prompt.add("ProbeControlNet", network)[0], "strength": 1.0,
        "start_percent": 0.0, "end_percent": 1.0, **changes,
    }  # fmt: skip
    return prompt.add("ContextDiffusionApplyQueryLayout", inputs)


@pytest.mark.parametrize("which", ["positive", "negative", "context_only"])
def test_a_control_model_for_another_unet(host: Server, which: str) -> None:
    prompt = Prompt()
    node = layout(prompt, **{which: text(prompt, 3, width=48)})
    words = (f"control_net reads text {WIDTH} wide", f"{which} is 48 wide", "connect the CONTROL_NET")
    fails(host, prompt, node[0], LAYOUT, *words)
