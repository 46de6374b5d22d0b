"""Nodes of other people around ours: patches, LoRAs, stacked control, second passes. Each must work as without us."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from .graph import SamplingGraph, calls, relative
from .prompt import Link
from .server import Server

BUNDLED = Path(__file__).parents[2] / "context_diffusion" / "pretrained" / "emoji-128.safetensors"

# Node -> its widgets. All patch the MODEL.
PATCHES = {
    "FreeU_V2": {"b1": 1.3, "b2": 1.4, "s1": 0.9, "s2": 0.2},
    "PerturbedAttentionGuidance": {"scale": 3.0},
    "SelfAttentionGuidance": {"scale": 0.5, "blur_sigma": 2.0},
    "TomePatchModel": {"ratio": 0.4},
    "RescaleCFG": {"multiplier": 0.7},
    "APG": {"eta": 1.0, "norm_threshold": 5.0, "momentum": 0.0},
    "Mahiro": {},
}


@pytest.mark.parametrize("node", PATCHES)
def test_a_patched_model(host: Server, node: str) -> None:
    graph = SamplingGraph(host)
    plain = graph.ours(4.0, 2.0)
    graph.model = graph.add(node, PATCHES[node], model=graph.model)[0]
    latents = graph.latents(plain=plain, two=graph.ours(), host=graph.ksampler(), three=graph.ours(4.0, 2.0))
    # TomePatchModel too: it draws from torch's own generator, which the host seeds with the noise.
    assert torch.equal(latents["two"], latents["host"])
    assert latents["three"].isfinite().all()
    assert relative(latents["three"], latents["plain"]) > 1e-3


def _write_lora(server: Server, seed: int = 0, rank: int = 4) -> str:
    """A random LoRA on every attention and feed-forward weight of the UNet and the text encoder, with kohya's names."""
    generator = torch.Generator().manual_seed(seed)
    lora = {}
    with safe_open(BUNDLED, "pt") as checkpoint:
        for key in checkpoint.keys():  # noqa: SIM118 - not a dict
            unet = re.fullmatch(r"unet\.(.*(?:attn[12]\.to_(?:q|k|v|out\.0)|ff\.net\.(?:0\.proj|2)))\.weight", key)
            text = re.fullmatch(r"text_encoder\.(.*(?:self_attn\.\w+_proj|mlp\.fc[12]))\.weight", key)
            if not unet and not text:
                continue
            rows, columns = checkpoint.get_slice(key).get_shape()
            if unet:
                name = f"lora_unet_{unet[1]}"
            else:
                name = f"lora_te_{text[1] if text[1].startswith('text_model') else 'text_model.' + text[1]}"
            name = name.replace(".", "_")
            lora[f"{name}.lora_up.weight"] = torch.randn(rows, rank, generator=generator) * 0.1
            lora[f"{name}.lora_down.weight"] = torch.randn(rank, columns, generator=generator) * 0.1
            lora[f"{name}.alpha"] = torch.tensor(float(rank))
    assert any(name.startswith("lora_te_") for name in lora) and any(name.startswith("lora_unet_") for name in lora)
    folder = server.base / "models" / "loras"
    folder.mkdir(exist_ok=True)
    file = f"random-{seed}.safetensors"
    save_file(lora, folder / file)
    return file


def _with_lora(graph: SamplingGraph, file: str, strength: float = 1.0) -> tuple[Link, Link]:
    lora = graph.add(
        "LoraLoader", model=graph.model, clip=graph.clip, lora_name=file, strength_model=strength,
        strength_clip=strength,
    )  # fmt: skip
    return lora[0], lora[1]


def test_a_lora_changes_the_output_and_unloads(host: Server) -> None:
    file = _write_lora(host)
    graph = SamplingGraph(host)
    before = graph.latents(plain=graph.ours(4.0, 2.0))["plain"]

    graph = SamplingGraph(host)
    model, clip = _with_lora(graph, file)
    printed = len(host.log)
    text = graph.add("CLIPTextEncode", clip=clip, text="a red flag on a white tent")[0]
    latents = graph.latents(
        model=graph.ours(4.0, 2.0, model=model),
        clip=graph.ours(4.0, 2.0, positive=text),
        both=graph.ours(4.0, 2.0, model=model, positive=text),
        both_two=graph.ours(model=model, positive=text),
        both_host=graph.ksampler(model=model, positive=text),
        without=graph.ours(4.0, 2.0),
    )
    assert "lora key not loaded" not in host.log[printed:]
    for name in ("model", "clip", "both"):
        assert relative(latents[name], before) > 0.01, name
    assert relative(latents["both"], latents["model"]) > 1e-3
    assert torch.equal(latents["both_two"], latents["both_host"])
    assert torch.equal(latents["without"], before)

    # Again without it, the weights patched a moment ago: nothing of it is left.
    graph = SamplingGraph(host)
    host.free()
    assert torch.equal(graph.latents(plain=graph.ours(4.0, 2.0))["plain"], before)


def test_merged_models(host: Server) -> None:
    file = _write_lora(host)
    graph = SamplingGraph(host)
    changed, _ = _with_lora(graph, file)
    merged = {
        ratio: graph.add("ModelMergeSimple", model1=graph.model, model2=changed, ratio=ratio)[0] for ratio in (1.0, 0.5)
    }
    latents = graph.latents(
        plain=graph.ours(4.0, 2.0),
        first=graph.ours(4.0, 2.0, model=merged[1.0]),
        half=graph.ours(4.0, 2.0, model=merged[0.5]),
        half_two=graph.ours(model=merged[0.5]),
        half_host=graph.ksampler(model=merged[0.5]),
    )
    assert torch.equal(latents["first"], latents["plain"])
    assert torch.equal(latents["half_two"], latents["half_host"])
    assert relative(latents["half"], latents["plain"]) > 1e-3


def test_second_pass_at_a_larger_size(host: Server) -> None:
    graph = SamplingGraph(host)
    graph.context_conditionings()

    def enlarged(first: Link) -> Link:
        return graph.add(
            "LatentUpscale", samples=first, upscale_method="nearest-exact", width=192, height=192, crop="disabled"
        )[0]

    settings = {"seed": 8, "steps": 3, "denoise": 0.5}
    latents = graph.latents(
        two=graph.ours(latent_image=enlarged(graph.ours()[0]), **settings),
        host=graph.ksampler(latent_image=enlarged(graph.ksampler()[0]), **settings),
        three=graph.ours(4.0, 2.0, latent_image=enlarged(graph.ours(4.0, 2.0)[0]), **settings),
    )
    assert torch.equal(latents["two"], latents["host"])
    assert latents["three"].shape == (1, 8, 24, 24) and latents["three"].isfinite().all()


@pytest.mark.parametrize(
    "settings",
    [
        {"strength": 0.0},
        {"start_percent": 0.0, "end_percent": 0.0},
        {"start_percent": 0.5, "end_percent": 0.5},
        {"start_percent": 1.0, "end_percent": 1.0},
        {"start_percent": 0.7, "end_percent": 0.2},
    ],
    ids=["strength 0", "0 to 0", "0.5 to 0.5", "1 to 1", "backwards"],
)
def test_a_layout_that_is_off_has_no_effect(host: Server, settings: dict) -> None:
    graph = SamplingGraph(host)
    graph.context_conditionings(query=False)
    plain = graph.ours(4.0, 2.0)
    graph.apply_layout(**settings)
    latents = graph.latents(plain=plain, off=graph.ours(4.0, 2.0), host=graph.ksampler(), two=graph.ours())
    assert torch.equal(latents["off"], latents["plain"])
    assert torch.equal(latents["two"], latents["host"])


def test_a_second_control_stacks(host: Server) -> None:
    graph = SamplingGraph(host)
    graph.context_conditionings()
    one, one_three = graph.ours(), graph.ours(4.0, 2.0)
    ours = graph.positive, graph.negative

    def stacked(strength: float) -> None:
        applied = graph.add(
            "ControlNetApplyAdvanced", positive=ours[0], negative=ours[1], control_net=graph.control_net,
            image=graph.image(4), strength=strength, start_percent=0.0, end_percent=1.0,
        )  # fmt: skip
        graph.positive, graph.negative = applied[0], applied[1]

    stacked(0.8)
    two, two_host, two_three = graph.ours(), graph.ksampler(), graph.ours(4.0, 2.0)
    stacked(0.0)
    latents = graph.latents(
        one=one, two=two, two_host=two_host, off=graph.ours(), one_three=one_three, two_three=two_three
    )
    assert torch.equal(latents["two"], latents["two_host"])
    assert torch.equal(latents["off"], latents["one"])
    assert relative(latents["two"], latents["one"]) > 0.01
    assert relative(latents["two_three"], latents["one_three"]) > 0.01


def test_ours_stacks_on_another_control(host: Server) -> None:
    graph = SamplingGraph(host)
    graph.context_conditionings(query=False)
    three = {}
    for name in ("positive", "negative", "context_only"):
        applied = graph.add(
            "ControlNetApplyAdvanced", positive=getattr(graph, name), negative=getattr(graph, name),
            control_net=graph.control_net, image=graph.image(4), strength=0.8, start_percent=0.0, end_percent=1.0,
        )  # fmt: skip
        three[name] = applied[0]
    graph.positive, graph.negative, graph.context_only = three.values()
    native = graph.ours(4.0, 2.0)
    graph.apply_layout()
    latents = graph.latents(native=native, both=graph.ours(4.0, 2.0), two=graph.ours(), host=graph.ksampler())
    assert torch.equal(latents["two"], latents["host"])
    assert relative(latents["both"], latents["native"]) > 0.01


@pytest.mark.parametrize("rows", [2, 3])
def test_guidance_patches_keep_one_call_for_the_branches(host: Server, rows: int) -> None:
    graph = SamplingGraph(host)
    graph.context_conditionings()
    model = graph.add("PerturbedAttentionGuidance", model=graph.model, scale=2.0)[0]
    graph.model, tag = graph.counted(model)
    graph.save(graph.ours(3.0, 3.0 if rows == 2 else 2.0, steps=3)[0])
    host.run(graph)
    # All branches in one call, then the perturbed positive alone.
    assert calls(host, tag) == [rows, 1] * 3
