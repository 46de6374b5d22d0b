"""Encode, Save and Load Visual Context against the host's own CLIP Vision Encode."""

from __future__ import annotations

import uuid

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from context_diffusion.images import load_image_as_tensor

from .events import Events
from .prompt import Link, NodeRef, Prompt
from .server import NodeError, PromptRejected, Server

FEATURES = ("last_hidden_state", "penultimate_hidden_states", "image_embeds")


def image(
    prompt: Prompt, seed: int, batch: int = 1, height: int = 40, width: int = 40, channels: int = 3, kind: str = "plain"
) -> Link:
    settings = {"seed": seed, "batch": batch, "height": height, "width": width, "channels": channels, "kind": kind}
    return prompt.add("ProbeImage", settings)[0]


def clip_vision(prompt: Prompt, width: int = 16, siglip: bool = False, wait: float = 0.0) -> Link:
    return prompt.add("ProbeClipVision", width=width, image_size=32, siglip=siglip, wait=wait)[0]


def encode(
    prompt: Prompt, encoder: Link, *images: Link, weights: str = "", fit: str = "crop", aggregation: str = "mean"
) -> NodeRef:
    sockets = {f"images.image{i}": link for i, link in enumerate(images)}
    settings = {"weights": weights, "fit": fit, "aggregation": aggregation}
    return prompt.add("ContextDiffusionEncodeVisualContext", {**sockets, **settings}, clip_vision=encoder)


def native(prompt: Prompt, encoder: Link, link: Link, crop: str = "center") -> NodeRef:
    return prompt.add("CLIPVisionEncode", clip_vision=encoder, image=link, crop=crop)


def run(server: Server, prompt: Prompt, **links: Link) -> dict[str, dict[str, torch.Tensor]]:
    """Run the graph; what each of these connections carried."""
    # The tag makes every probe another one: old hosts tell nothing of an output node whose result is cached.
    probes = {name: prompt.add("ProbeSave", value=link, tag=uuid.uuid4().hex) for name, link in links.items()}
    history = server.run(prompt)
    return {name: server.tensors(history, probe) for name, probe in probes.items()}


@pytest.mark.parametrize(("fit", "crop"), [("crop", "center"), ("stretch", "none")])
@pytest.mark.parametrize("siglip", [False, True])
def test_one_image_is_the_native_encoding(host: Server, fit: str, crop: str, siglip: bool) -> None:
    prompt = Prompt()
    encoder, picture = clip_vision(prompt, siglip=siglip), image(prompt, 1, height=50, width=70)
    ours = encode(prompt, encoder, picture, fit=fit)
    got = run(host, prompt, ours=ours[0], native=native(prompt, encoder, picture, crop)[0])
    expected = got["native"]
    assert set(FEATURES) <= expected.keys() and ("all_hidden_states" in expected) == siglip
    assert got["ours"].keys() - {"context_diffusion.images"} == expected.keys()
    assert all(torch.equal(got["ours"][name], expected[name]) for name in expected)


def test_mean_sum_concat_and_weights(host: Server) -> None:
    prompt = Prompt()
    encoder = clip_vision(prompt)
    pictures = [image(prompt, 1), image(prompt, 2, batch=2, height=64, width=30), image(prompt, 3, height=20, width=33)]
    links = {f"native{i}": native(prompt, encoder, picture)[0] for i, picture in enumerate(pictures)}
    for name in ("mean", "sum", "concat"):
        links[name] = encode(prompt, encoder, *pictures, aggregation=name)[0]
        links[f"{name} weighted"] = encode(prompt, encoder, *pictures, weights="2, 0.5 ,0", aggregation=name)[0]
    got = run(host, prompt, **links)
    for feature in FEATURES:
        tokens = torch.cat([got[f"native{i}"][feature] for i in range(3)])
        for suffix, weights in (("", torch.ones(4)), (" weighted", torch.tensor([2.0, 0.5, 0.5, 0.0]))):
            weighted = tokens * weights.view(-1, *[1] * (tokens.ndim - 1))
            total = weighted.sum(0, keepdim=True)
            expected = {"mean": total / weights.sum(), "sum": total, "concat": weighted}
            for name, value in expected.items():
                torch.testing.assert_close(got[name + suffix][feature], value, rtol=1e-5, atol=1e-5)
    assert got["mean"]["context_diffusion.images"] == 4


@pytest.mark.parametrize("bypassed", [0, 1, 2])
def test_any_image_may_be_bypassed(host: Server, bypassed: int) -> None:
    """The editor leaves a bypassed image out of the prompt, and out of no other socket's name."""
    prompt = Prompt()
    encoder, pictures = clip_vision(prompt), [image(prompt, seed) for seed in (1, 2, 3)]
    ours = encode(prompt, encoder, *pictures)
    del prompt.nodes[ours.id]["inputs"][f"images.image{bypassed}"]
    without = encode(prompt, encoder, *(picture for i, picture in enumerate(pictures) if i != bypassed))
    got = run(host, prompt, ours=ours[0], without=without[0])
    assert all(torch.equal(got["ours"][name], got["without"][name]) for name in FEATURES)


def test_concat_of_a_batch_is_the_native_batch(host: Server) -> None:
    prompt = Prompt()
    encoder, batch = clip_vision(prompt), image(prompt, 4, batch=3)
    ours = encode(prompt, encoder, batch, aggregation="concat")
    got = run(host, prompt, ours=ours[0], native=native(prompt, encoder, batch)[0])
    assert all(torch.equal(got["ours"][name], got["native"][name]) for name in FEATURES)


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
def test_seen_is_what_the_encoder_saw(host: Server, fit: str) -> None:
    prompt = Prompt()
    encoder = clip_vision(prompt)
    pictures = [image(prompt, 5, height=80, width=40), image(prompt, 6, height=30, width=90), image(prompt, 7)]
    ours = encode(prompt, encoder, *pictures, fit=fit, aggregation="concat")
    again = native(prompt, encoder, ours[1], "none")
    got = run(host, prompt, ours=ours[0], seen=ours[1], again=again[0])
    assert got["seen"]["value"].shape == (3, 32, 32, 3)
    torch.testing.assert_close(got["ours"]["last_hidden_state"], got["again"]["last_hidden_state"], rtol=0, atol=1e-5)


def test_pad_shows_all_of_the_image_on_its_borders_color(host: Server) -> None:
    prompt = Prompt()
    wide = prompt.add("EmptyImage", width=64, height=32, batch_size=1, color=0x804020)[0]
    ours = encode(prompt, clip_vision(prompt), wide, fit="pad")
    seen = run(host, prompt, seen=ours[1])["seen"]["value"]
    color = torch.tensor([0x80, 0x40, 0x20]) / 255
    torch.testing.assert_close(seen, color.expand(1, 32, 32, 3), rtol=0, atol=1e-6)


def test_grey_and_transparent_images(host: Server) -> None:
    prompt = Prompt()
    encoder = clip_vision(prompt)
    grey, alpha = image(prompt, 8, channels=1), image(prompt, 9, channels=4)
    ours = encode(prompt, encoder, grey, alpha, aggregation="concat")
    got = run(host, prompt, seen=ours[1], grey=grey, alpha=alpha)
    rgba = got["alpha"]["value"]
    white = rgba[..., :3] * rgba[..., 3:] + 1 - rgba[..., 3:]
    for row, expected in enumerate((got["grey"]["value"].expand(-1, -1, -1, 3), white)):
        small = torch.nn.functional.interpolate(expected.movedim(-1, 1), size=32, mode="bicubic", antialias=True).clamp(
            0, 1
        )
        torch.testing.assert_close(got["seen"]["value"][row].movedim(-1, 0), small[0], rtol=0, atol=0.5 / 255 + 1e-6)


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
def test_images_in_half_precision(host: Server, fit: str) -> None:
    """As the host keeps them with --fp16-intermediates."""
    prompt = Prompt()
    encoder = clip_vision(prompt)
    half, plain = (image(prompt, 9, height=50, width=70, kind=kind) for kind in ("half", "plain"))
    ours = {
        name: encode(prompt, encoder, link, image(prompt, 3), fit=fit) for name, link in (("h", half), ("p", plain))
    }
    got = run(host, prompt, half=ours["h"][0], plain=ours["p"][0], seen=ours["h"][1])
    assert got["seen"]["value"].dtype == torch.float32
    expected = got["plain"]["last_hidden_state"]
    torch.testing.assert_close(
        got["half"]["last_hidden_state"], expected, rtol=0, atol=0.05 * expected.abs().max().item()
    )


def test_transparency_of_a_file_is_laid_over_white(host: Server) -> None:
    """As the notes tell: Load Image gives the transparency away as a mask, and Join Image with Alpha takes it back."""
    yy, xx = np.mgrid[:32, :32]
    inside = (yy - 16) ** 2 + (xx - 16) ** 2 < 100
    pixels = np.zeros((32, 32, 4), np.uint8)
    pixels[inside] = (30, 60, 90, 255)
    pixels[8:12, 8:12, 3] = 128
    path = host.base / "input" / "glyph.png"
    Image.fromarray(pixels).save(path)
    prompt = Prompt()
    file = prompt.add("LoadImage", image=path.name)
    joined = prompt.add("JoinImageWithAlpha", image=file[0], alpha=file[1])
    ours = encode(prompt, clip_vision(prompt), joined[0])
    shown = prompt.add("ContextDiffusionLayoutMap", image=joined[0], map="none")
    found = run(host, prompt, seen=ours[1], shown=shown[0])
    expected = load_image_as_tensor(path).movedim(0, -1)
    assert expected[0, 0].min() == 1 and expected[16, 16].max() < 0.4
    for name in ("seen", "shown"):
        torch.testing.assert_close(found[name]["value"][0], expected, rtol=0, atol=1.5 / 255)


def test_many_images_go_in_chunks(host: Server) -> None:
    prompt = Prompt()
    encoder = clip_vision(prompt, wait=1e-6)  # one that no other test has used
    ours = encode(prompt, encoder, image(prompt, 10, batch=97), image(prompt, 11), image(prompt, 12, batch=2))
    batches = prompt.add("ProbeBatches", clip_vision=encoder, after=ours[0])
    saved = prompt.add("ProbeSave", value=ours[0])
    history = host.run(prompt)
    assert history.outputs[batches.id]["batches"] == [8] * 12 + [1, 1, 2]
    assert host.tensors(history, saved)["context_diffusion.images"] == 100


def test_interrupt_stops_between_chunks(host: Server) -> None:
    prompt = Prompt()
    encoder = clip_vision(prompt, wait=0.5)
    # 100 chunks: far more than it can reach before it hears of the interruption.
    ours = encode(prompt, encoder, image(prompt, 13, batch=800))
    prompt.add("ProbeSave", value=ours[0])
    with Events(host) as events:
        prompt_id = events.queue(prompt)
        events.until_progress(ours, 8)
        host.post("/interrupt", {})
        assert events.until_end(prompt_id)[-1]["type"] == "execution_interrupted"
    # The host still holds the encoder, which knows what it was given.
    prompt = Prompt()
    encoder = clip_vision(prompt, wait=0.5)
    batches = prompt.add("ProbeBatches", clip_vision=encoder, after=encoder)
    given = host.run(prompt).outputs[batches.id]["batches"]
    assert set(given) == {8} and len(given) < 100


@pytest.mark.parametrize("siglip", [False, True])
def test_a_saved_style_comes_back_exactly(host: Server, siglip: bool) -> None:
    prompt = Prompt()
    ours = encode(prompt, clip_vision(prompt, siglip=siglip), image(prompt, 14), image(prompt, 15, width=60))
    saved = prompt.add(
        "ContextDiffusionSaveVisualContext", visual_context=ours[0], name=f"tests/round trip {siglip}", overwrite=False
    )
    written = prompt.add("ProbeSave", value=saved[0])
    history = host.run(prompt)
    file = f"tests/round trip {siglip}.safetensors"
    assert history.outputs[saved.id]["text"] == [f"Saved as {file}"]
    assert (host.base / "models" / "visual_context" / file).is_file()

    again = Prompt()
    loaded = again.add("ContextDiffusionLoadVisualContext", name=file)
    got, expected = run(host, again, loaded=loaded[0])["loaded"], host.tensors(history, written)
    assert got.keys() == expected.keys()
    assert all(torch.equal(got[name], expected[name]) for name in got)


def _save(server: Server, seed: int, name: str, overwrite: bool = False) -> torch.Tensor:
    prompt = Prompt()
    ours = encode(prompt, clip_vision(prompt), image(prompt, seed))
    settings = {"name": name, "overwrite": overwrite}
    saved = prompt.add("ContextDiffusionSaveVisualContext", settings, visual_context=ours[0])
    return run(server, prompt, saved=saved[0])["saved"]["last_hidden_state"]


def _load(server: Server, name: str) -> torch.Tensor | None:
    """The loaded tokens; None if the file was not read again."""
    prompt = Prompt()
    loaded = prompt.add("ContextDiffusionLoadVisualContext", name=name)
    probe = prompt.add("ProbeSave", value=loaded[0])
    history = server.run(prompt)
    return server.tensors(history, probe)["last_hidden_state"] if loaded.id in history.executed else None


def test_a_file_saved_anew_is_read_anew(host: Server) -> None:
    first = _save(host, 16, "anew")
    assert torch.equal(_load(host, "anew.safetensors"), first)
    assert _load(host, "anew.safetensors") is None
    with pytest.raises(NodeError, match="another name, or switch overwrite on"):
        _save(host, 17, "anew")
    second = _save(host, 17, "anew", overwrite=True)
    assert torch.equal(_load(host, "anew.safetensors"), second) and not torch.equal(first, second)


def test_what_was_saved_before_is_saved_again(host: Server) -> None:
    """The host may remember the first run: it must not say "saved" for a file that holds another style by now."""
    first, second = (_save(host, seed, "back", overwrite=True) for seed in (16, 17))
    assert torch.equal(_load(host, "back.safetensors"), second)
    assert torch.equal(_save(host, 16, "back", overwrite=True), first)
    assert torch.equal(_load(host, "back.safetensors"), first)
    (host.base / "models" / "visual_context" / "back.safetensors").unlink()
    _save(host, 16, "back", overwrite=True)
    assert torch.equal(_load(host, "back.safetensors"), first)


def test_nothing_runs_again_behind_a_style_that_is_still_there(host: Server) -> None:
    prompt = Prompt()
    ours = encode(prompt, clip_vision(prompt), image(prompt, 19))
    settings = {"name": "still there", "overwrite": False}
    saved = prompt.add("ContextDiffusionSaveVisualContext", settings, visual_context=ours[0])
    prompt.add("ProbeSave", value=saved[0])
    assert saved.id in host.run(prompt).executed
    assert host.run(prompt).executed == set()


def test_a_style_named_by_another_node(host: Server) -> None:
    first = _save(host, 16, "named")
    prompt = Prompt()
    name = prompt.add("ProbeAny", value="named.safetensors")
    loaded = prompt.add("ContextDiffusionLoadVisualContext", name=name[0])
    probe = prompt.add("ProbeSave", value=loaded[0])
    assert torch.equal(host.tensors(host.run(prompt), probe)["last_hidden_state"], first)
    assert host.run(prompt).executed == set()
    second = _save(host, 17, "named", overwrite=True)
    assert torch.equal(host.tensors(host.run(prompt), probe)["last_hidden_state"], second)


@pytest.mark.parametrize("name", ["../outside", "/tmp/outside", "a/../../outside", ""])
def test_a_style_cannot_be_saved_elsewhere(host: Server, name: str) -> None:
    with pytest.raises(NodeError, match="style's name"):
        _save(host, 16, name)
    assert not list(host.base.rglob("*outside*"))


def test_damaged_and_foreign_style_files(host: Server) -> None:
    _save(host, 18, "good")
    folder = host.base / "models" / "visual_context"
    content = (folder / "good.safetensors").read_bytes()
    (folder / "damaged.safetensors").write_bytes(content[:-9])
    with pytest.raises(NodeError, match="truncated.*save it again"):
        _load(host, "damaged.safetensors")
    save_file({"last_hidden_state": torch.zeros(1, 5, 8)}, folder / "foreign.safetensors")
    with pytest.raises(NodeError, match="not a saved visual context"):
        _load(host, "foreign.safetensors")
    with pytest.raises(PromptRejected, match="not in list"):
        _load(host, "../../secret.safetensors")
