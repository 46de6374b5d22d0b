"""Load Context Diffusion and Example Images on a real server: dtypes, files of every condition, missing parts."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from context_diffusion.checkpoint.read import load_checkpoint
from context_diffusion.checkpoint.write import save_checkpoint
from context_diffusion.images import load_image_as_tensor
from context_diffusion.model.latents import encode_images
from context_diffusion.pretrained import bundled_model_path
from context_diffusion.pretrained.examples import load_examples
from tests.core.tiny import tiny_model

from .events import Events
from .graph import SamplingGraph, put_image
from .hosts import Host
from .native import BUNDLED
from .prompt import Link, NodeRef, Prompt
from .server import NodeError, PromptRejected, Server

SOCKETS = ("model", "clip", "vae", "clip_vision", "style_model", "control_net")


def loaded(model_name: str = BUNDLED, node: str = "ContextDiffusionLoader") -> tuple[Prompt, NodeRef]:
    prompt = Prompt()
    return prompt, prompt.add(node, model_name=model_name)


def made_of(server: Server, model_name: str = BUNDLED) -> dict:
    prompt, loader = loaded(model_name)
    probe = prompt.add("ProbeMadeOf", {name: loader[index] for index, name in enumerate(SOCKETS)})
    return server.run(prompt).outputs[probe.id]["found"][0]


def models_folder(server: Server) -> Path:
    return server.base / "models" / "context_diffusion"


def test_dtypes_and_reloading(host: Server) -> None:
    """On a CPU the host computes in fp32: so do all networks, with fp32 weights, whatever the file has (fp16 here)."""
    found = made_of(host)
    assert found["dtypes"] == dict.fromkeys(SOCKETS, "float32")
    assert found["manual_cast"] == "None"
    # What the host asks for when it needs the weights a second time.
    assert found["reloaded"] == {"model": True, "clip": True, "vae": True}
    assert found["style_model"] == [65, 192, 192]
    # The encoders' dtype is a choice of ours where no flag makes it; the others' is logged by the host.
    assert "model weight dtype torch.float32, manual cast: None" in host.log


def test_flags_choose_the_dtype(comfyui: Host, start_server: Callable[..., Server]) -> None:
    server = start_server(comfyui, ("--fp16-text-enc", "--bf16-unet", "--bf16-vae"))
    dtypes = made_of(server)["dtypes"]
    # The host leaves the normalisations of an image encoder in fp32.
    assert dtypes["clip_vision"] in ("float16", "float16 float32")
    assert dtypes["model"] == dtypes["control_net"] == dtypes["vae"] == "bfloat16"
    assert "float16" in dtypes["clip"].split()


def test_previews_show_the_picture(host: Server) -> None:
    """The colors of a latent that the loader fits explain most of what real pictures look like, eight times smaller."""
    found = made_of(host)
    factors, bias = (torch.tensor(part) for part in found["preview"])
    vae = load_checkpoint(bundled_model_path(), dtype=torch.float32).vae
    paths = {path for example in load_examples().values() for path in (*example.context, example.query) if path}
    images = torch.stack([load_image_as_tensor(path) for path in sorted(paths)])
    with torch.no_grad():
        latents = encode_images(vae, images)
    seen = torch.nn.functional.avg_pool2d(images, 8) * 2 - 1
    shown = (latents.movedim(1, -1) @ factors + bias).clamp(-1, 1).movedim(-1, 1)
    mean = seen.mean((0, 2, 3), keepdim=True)
    assert (shown - seen).square().mean() < 0.25 * (seen - mean).square().mean()
    assert found["latent"] == [8, pytest.approx(vae.config.scaling_factor), 8]


def test_a_vae_that_gives_no_numbers_has_no_previews(host: Server) -> None:
    """As some do in half precision. Everything else of the model can be used."""
    model = tiny_model()
    model.vae.encoder.conv_in.weight.fill_(3e38)
    save_checkpoint(model, models_folder(host) / "overflow.safetensors")
    assert made_of(host, "overflow.safetensors")["preview"] == [None, None]


def test_a_host_that_pages_weights_loads_and_samples_the_same(host: Server) -> None:
    """DynamicVRAM, the default with NVIDIA cards: linear layers have no weights until they are loaded."""
    latents = {}
    for loader in ("ContextDiffusionLoader", "ProbePagedLoader"):
        graph = SamplingGraph(host, loader=loader)
        graph.context_conditionings()
        latents[loader] = graph.latents(ours=graph.ours(4.0, 2.0))["ours"]
    assert torch.equal(latents["ProbePagedLoader"], latents["ContextDiffusionLoader"])


def test_a_host_that_pages_weights_refuses_the_same_files(host: Server) -> None:
    """There a layer takes weights of any shape without a word."""
    for part in PARTS_OF_THE_FILE:
        name = f"wrong shape {part}.safetensors"
        _with_a_wrong_shape(models_folder(host) / name, part)
        for loader in ("ContextDiffusionLoader", "ProbePagedLoader"):
            message = run_error(host, name, loader)
            assert part in message and "save it again" in message and "\n" not in message


# Those that have linear layers.
PARTS_OF_THE_FILE = ("unet", "layout_encoder", "text_encoder", "image_encoder", "projector")


def _with_a_wrong_shape(path: Path, part: str) -> None:
    """A tiny model whose first linear weight of one part is a row short."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    save_checkpoint(tiny_model(), path)
    with safe_open(path, "pt") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    del metadata["context_diffusion.crc32"]
    name = next(name for name, value in tensors.items() if name.startswith(f"{part}.") and _is_linear(name, value))
    tensors[name] = tensors[name][:-1].clone()
    save_file(tensors, path, metadata)


def _is_linear(name: str, value: torch.Tensor) -> bool:
    return value.ndim == 2 and name.endswith(".weight") and "embedding" not in name


def test_a_visual_context_of_another_encoder_is_refused(host: Server) -> None:
    """As wide and of as many tokens: only the marks tell. Saved and loaded it is the same."""
    save_checkpoint(tiny_model(seed=1), models_folder(host) / "one.safetensors")
    other = tiny_model(seed=1)
    next(value for value in other.image_encoder.parameters() if value.ndim == 1).add_(0.1)
    save_checkpoint(other, models_folder(host) / "other.safetensors")
    for name in ("one.safetensors", "other.safetensors"):
        prompt, made = loaded(name)
        images = {"images.image0": prompt.add("LoadImage", image=put_image(host, 1))[0]}
        encoded = prompt.add(
            "ContextDiffusionEncodeVisualContext", images, clip_vision=made[3], weights="", fit="crop",
            aggregation="mean",
        )  # fmt: skip
        saved = prompt.add(
            "ContextDiffusionSaveVisualContext", visual_context=encoded[0], name=f"of {name}", overwrite=True
        )
        _combine_and_run(host, prompt, saved[0], refused=name.startswith("other"))
        again = Prompt()
        style = again.add("ContextDiffusionLoadVisualContext", name=f"of {name}")
        _combine_and_run(host, again, style[0], refused=name.startswith("other"))


def _combine_and_run(server: Server, prompt: Prompt, visual_context: Link, refused: bool) -> None:
    reads = prompt.add("ContextDiffusionLoader", model_name="one.safetensors")
    links = {"style_model": reads[4], "clip": reads[1], "visual_context": visual_context}
    prompt.add("ProbeSave", value=prompt.add("ContextDiffusionCombine", links, strength=1.0)[0])
    if not refused:
        server.run(prompt)
        return
    with pytest.raises(NodeError, match="another image encoder.*saved again"):
        server.run(prompt)


def run_error(server: Server, model_name: str, node: str = "ContextDiffusionLoader") -> str:
    prompt, loader = loaded(model_name, node)
    prompt.add("ProbeSave", value=loader[0])
    with pytest.raises(NodeError) as caught:
        server.run(prompt)
    assert caught.value.node_type == node
    assert caught.value.exception_type.endswith("ContextDiffusionError"), caught.value
    return caught.value.message


def blocked(server: Server, prompt: Prompt) -> str:
    """What the interface shows of a graph that waits for something that is not there."""
    with Events(server) as events:
        told = events.until_end(events.queue(prompt))
    return told[-1]["data"]["exception_message"]


def test_a_missing_file_is_one_line(host: Server) -> None:
    prompt, loader = loaded("gone.safetensors")
    prompt.add("ProbeSave", value=loader[0])
    with pytest.raises(PromptRejected, match="there is no model 'gone.safetensors': put the file in models/context_d"):
        host.run(prompt)


def test_damaged_and_foreign_files_are_one_line(host: Server) -> None:
    from safetensors.torch import save_file

    folder = models_folder(host)
    whole = bundled_model_path().read_bytes()
    (folder / "short.safetensors").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.safetensors").touch()
    save_file({"model.weight": torch.zeros(1)}, folder / "lora.safetensors")
    for name, words in (("short", "truncated"), ("empty", "is empty"), ("lora", "of another origin")):
        assert words in run_error(host, f"{name}.safetensors"), name


def test_a_model_outside_the_native_limits_is_one_line(host: Server) -> None:
    model = tiny_model()
    model.unet.register_to_config(freq_shift=1)
    save_checkpoint(model, models_folder(host) / "limits.safetensors")
    message = run_error(host, "limits.safetensors")
    assert "cannot run in ComfyUI: unet: freq_shift is 1, must be 0" in message


def test_wrong_weights_are_one_line(host: Server) -> None:
    from safetensors import safe_open
    from safetensors.torch import save_file

    file = save_checkpoint(tiny_model(), models_folder(host) / "whole.safetensors")
    with safe_open(file, framework="pt") as opened:
        metadata, weights = opened.metadata(), {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118, not a dict
    del metadata["context_diffusion.crc32"]
    rows = "text_encoder.text_model.embeddings.token_embedding.weight"
    norm = "text_encoder.text_model.final_layer_norm.bias"
    for name, change, words in (
        ("less", {"unet.conv_in.bias": None}, "the unet lacks 1 weights"),
        ("more", {"unet.conv_in.scale": torch.ones(1)}, "no place for (conv_in.scale among them)"),
        ("shape", {"layout_encoder.conv_in.bias": torch.zeros(3)}, "is [3], but its config asks for [32]"),
        ("rows", {rows: torch.zeros(7, 32)}, "the text_encoder config has vocab_size 540, and its tensors show 7"),
        ("text", {norm: torch.zeros(7)}, "text_encoder: size mismatch"),
        ("vae", {"vae.encoder.conv_in.bias": torch.zeros(7)}, "vae: size mismatch"),
        ("nan", {"unet.conv_in.bias": torch.full((32,), float("nan"))}, "NaN"),
    ):
        changed = {key: tensor for key, tensor in {**weights, **change}.items() if tensor is not None}
        save_file(changed, file.with_stem(name), metadata=metadata)
        assert words in run_error(host, f"{name}.safetensors"), name


def test_a_part_that_the_file_lacks_says_what_to_connect(host: Server) -> None:
    model = tiny_model()
    model.vae = model.text_encoder = model.tokenizer = model.image_encoder = model.layout_encoder = None
    save_checkpoint(model, models_folder(host) / "bare.safetensors")
    prompt, loader = loaded("bare.safetensors")
    prompt.add("ProbeSave", value=loader[0])
    host.run(prompt)  # what is there can be used
    for index, words in ((1, "Load CLIP"), (2, "Load VAE"), (3, "Load CLIP Vision"), (5, "Load ControlNet Model")):
        prompt, loader = loaded("bare.safetensors")
        prompt.add("ProbeSave", value=loader[index])
        message = blocked(host, prompt)
        assert "bare.safetensors has no" in message and words in message


def test_a_replaced_file_is_loaded_again(host: Server) -> None:
    file = models_folder(host) / "replaced.safetensors"
    save_checkpoint(tiny_model(seed=0), file)
    prompt, loader = loaded(file.name)
    text = prompt.add("CLIPTextEncode", clip=loader[1], text="a moon")
    probe = prompt.add("ProbeSave", value=text[0])
    first = host.tensors(host.run(prompt), probe)["0.0"]
    assert host.run(prompt).executed == set()
    save_checkpoint(tiny_model(seed=1), file)
    os.utime(file, ns=(1, 1))
    history = host.run(prompt)
    assert history.executed == {loader.id, text.id, probe.id}
    assert not torch.equal(host.tensors(history, probe)["0.0"], first)


def test_a_name_from_another_node(host: Server) -> None:
    file = models_folder(host) / "named.safetensors"
    save_checkpoint(tiny_model(seed=0), file)
    prompt = Prompt()
    named = prompt.add("ProbeAny", value=file.name)
    loader = prompt.add("ContextDiffusionLoader", model_name=named[0])
    probe = prompt.add("ProbeSave", value=loader[0])
    assert loader.id in host.run(prompt).executed
    assert host.run(prompt).executed == set()
    os.utime(file, ns=(1, 1))
    assert host.run(prompt).executed >= {loader.id, probe.id}
    # A name that is not there is found out when the node runs.
    prompt.nodes[named.id]["inputs"]["value"] = "gone.safetensors"
    with pytest.raises(NodeError, match="there is no model 'gone.safetensors' in models/context_diffusion"):
        host.run(prompt)


def test_files_of_extra_model_paths(comfyui: Host, start_server: Callable[..., Server], tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    save_checkpoint(tiny_model(), elsewhere / "mine.safetensors")
    (elsewhere / "notes.txt").touch()
    paths = tmp_path / "paths.yaml"
    paths.write_text(f"mine:\n  base_path: {tmp_path}\n  context_diffusion: elsewhere\n")
    server = start_server(comfyui, ("--extra-model-paths-config", str(paths)))
    shutil.copy(elsewhere / "mine.safetensors", models_folder(server) / "theirs.safetensors")
    kind, settings = server.get("/object_info")["ContextDiffusionLoader"]["input"]["required"]["model_name"]
    options = settings["options"] if kind == "COMBO" else kind
    assert options[0] == BUNDLED and sorted(options[1:]) == ["mine.safetensors", "theirs.safetensors"]
    assert made_of(server, "mine.safetensors")["latent"][0] == 4


def test_every_example(host: Server) -> None:
    for name, example in load_examples().items():
        prompt = Prompt()
        node = prompt.add("ContextDiffusionExampleImages", example=name)
        joined = prompt.add("StringConcatenate", string_a=node[4], string_b="", delimiter="")
        text = prompt.add("ProbeSave", value=joined[0])
        images = [*example.context[:3], example.query] if example.context and example.query else []
        probes = [prompt.add("ProbeSave", value=node[index]) for index in range(len(images))]
        history = host.run(prompt)
        assert text.id in history.executed
        for path, probe in zip(images, probes, strict=True):
            got = host.tensors(history, probe)["value"]
            assert torch.equal(got[0].movedim(-1, 0), load_image_as_tensor(path)), path


@pytest.mark.parametrize(
    ("example", "output", "words"),
    [("prompt-only", 0, "no context images"), ("context-only", 3, "no query image")],
)
def test_an_example_without_an_image_says_so(host: Server, example: str, output: int, words: str) -> None:
    prompt = Prompt()
    prompt.add("ProbeSave", value=prompt.add("ContextDiffusionExampleImages", example=example)[output])
    assert f"the example '{example}' has {words}: choose another" in blocked(host, prompt)
