"""Well-known packs beside ours in one server, each with a graph that passes our sockets through its nodes.

COMFYUI_PACKS_PATH names a folder with checkouts of them, each under its repository's name (default `~/comfy/packs`).
What is not there is skipped, and so is what does not load in this ComfyUI for reasons of its own.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from .hosts import Host
from .prompt import Link, NodeRef, Prompt
from .server import Server

PACKS = Path(os.environ.get("COMFYUI_PACKS_PATH", "~/comfy/packs")).expanduser()
STEPS = 3

pytestmark = pytest.mark.slow


class Graph:
    """A small graph of ours whose connections a test leads through other nodes before it is sampled."""

    def __init__(self, size: int = 128) -> None:
        self.prompt = Prompt()
        self.loader = self.add("ContextDiffusionLoader", model_name="emoji-128 (bundled)")
        self.images = self.add("ContextDiffusionExampleImages", example="moon-camp")
        self.model, self.clip, self.vae = self.loader[0], self.loader[1], self.loader[2]
        self.clip_vision, self.style_model, self.control_net = self.loader[3], self.loader[4], self.loader[5]
        self.latent = self.add("EmptyLatentImage", width=size, height=size, batch_size=1)[0]

    def add(self, class_type: str, inputs: dict | None = None, **more: object) -> NodeRef:
        return self.prompt.add(class_type, inputs, **more)

    def text(self, text: object = "camping") -> Link:
        return self.add("CLIPTextEncode", text=text, clip=self.clip)[0]

    def context(self, images: list[Link] | None = None) -> Link:
        images = images or [self.images[0], self.images[1]]
        sockets = {f"images.image{index}": image for index, image in enumerate(images)}
        return self.add(
            "ContextDiffusionEncodeVisualContext",
            sockets,
            clip_vision=self.clip_vision,
            weights="",
            fit="crop",
            aggregation="mean",
        )[0]

    def combine(self, text: Link | None = None, context: Link | None = None) -> tuple[Link, Link, Link]:
        """Positive, context only, negative."""
        combined = self.add(
            "ContextDiffusionCombine",
            style_model=self.style_model,
            visual_context=context or self.context(),
            positive=text or self.text(),
            clip=self.clip,
            strength=1.0,
        )
        return combined[0], combined[1], combined[2]

    def map(self) -> Link:
        return self.add("ContextDiffusionLayoutMap", image=self.images[3], map="soft edge", map_size=0)[0]

    def sample(self, positive: Link, context_only: Link, negative: Link, context_scale: float = 2.0) -> Link:
        """With two scales, so that the third branch runs too."""
        return self.add(
            "ContextDiffusionSampler",
            model=self.model,
            positive=positive,
            negative=negative,
            context_only=context_only,
            latent_image=self.latent,
            seed=0,
            steps=STEPS,
            text_guidance_scale=3.0,
            context_guidance_scale=context_scale,
            sampler_name="euler",
            scheduler="simple",
            denoise=1.0,
        )[0]

    def ksample(self, positive: Link, negative: Link) -> Link:
        return self.add(
            "KSampler",
            model=self.model,
            positive=positive,
            negative=negative,
            latent_image=self.latent,
            seed=0,
            steps=STEPS,
            cfg=3.0,
            sampler_name="euler",
            scheduler="simple",
            denoise=1.0,
        )[0]


@pytest.fixture(scope="module")
def together(comfyui: Host, start_server: Callable[..., Server]) -> Server:
    """A server with all packs that are there."""
    packs = {folder.name: folder for folder in sorted(PACKS.glob("*")) if (folder / "__init__.py").is_file()}
    if not packs:
        pytest.skip(f"no packs in {PACKS}: set COMFYUI_PACKS_PATH to a folder with checkouts of them")
    return start_server(comfyui, packs=packs)


def _latent(server: Server, graph: Graph, samples: Link, needs: str) -> torch.Tensor:
    """Run the graph and read a latent (or an image), which must be finite."""
    if needs not in server.get("/object_info"):
        pytest.skip(f"{needs} is not there: its pack is missing, or does not load in this ComfyUI")
    probe = graph.add("ProbeSave", value=samples)
    tensors = server.tensors(server.run(graph.prompt), probe)
    values = tensors["samples"] if "samples" in tensors else tensors["value"]
    assert torch.isfinite(values).all() and values.std() > 0
    return values


def _ours(server: Server) -> torch.Tensor:
    graph = Graph()
    return _latent(server, graph, graph.sample(*graph.combine()), "ContextDiffusionSampler")


def test_at_least_six_load_beside_ours(together: Server) -> None:
    modules = {info["python_module"] for info in together.get("/object_info").values()}
    others = {name for name in modules if name.startswith("custom_nodes.") and "context-diffusion" not in name}
    assert "custom_nodes.context-diffusion" in modules
    assert len(others - {"custom_nodes.websocket_image_save"}) >= 6


def test_advanced_controlnet_applies_our_layout_encoder(together: Server) -> None:
    def latent(node: str) -> torch.Tensor:
        graph = Graph()
        positive, _, negative = graph.combine()
        applied = graph.add(
            node,
            positive=positive,
            negative=negative,
            control_net=graph.control_net,
            image=graph.map(),
            strength=1.0,
            start_percent=0.0,
            end_percent=1.0,
        )
        return _latent(together, graph, graph.ksample(applied[0], applied[1]), node)

    theirs, native = latent("ACN_AdvancedControlNetApply"), latent("ControlNetApplyAdvanced")
    assert torch.allclose(theirs, native, rtol=1e-3, atol=1e-3)


def test_prompt_control_schedules_text_for_our_combiner(together: Server) -> None:
    graph = Graph()
    text = graph.add("PCLazyTextEncode", clip=graph.clip, text="[tent:mountain:0.5]")[0]
    latent = _latent(together, graph, graph.sample(*graph.combine(text)), "PCLazyTextEncode")
    graph = Graph()
    plain = _latent(together, graph, graph.sample(*graph.combine(graph.text("tent"))), "ContextDiffusionSampler")
    assert not torch.equal(latent, plain)


def test_adv_clip_emb_weighs_words_of_our_text_encoder(together: Server) -> None:
    graph = Graph()
    text = graph.add(
        "BNK_CLIPTextEncodeAdvanced",
        text="camping, (mountain:1.4)",
        clip=graph.clip,
        token_normalization="mean",
        weight_interpretation="compel",
    )[0]
    _latent(together, graph, graph.sample(*graph.combine(text)), "BNK_CLIPTextEncodeAdvanced")


def test_kjnodes_applies_our_projector(together: Server) -> None:
    graph = Graph()
    styled = graph.add(
        "StyleModelApplyAdvanced",
        conditioning=graph.text(),
        style_model=graph.style_model,
        clip_vision_output=graph.context(),
        strength=1.0,
    )[0]
    _, _, negative = graph.combine()
    theirs = _latent(together, graph, graph.ksample(styled, negative), "StyleModelApplyAdvanced")

    graph = Graph()
    positive, _, negative = graph.combine()
    ours = _latent(together, graph, graph.ksample(positive, negative), "KSampler")
    assert torch.allclose(theirs, ours, rtol=1e-4, atol=1e-5)


def test_rgthree_carries_our_objects_in_its_context(together: Server) -> None:
    graph = Graph()
    positive, context_only, negative = graph.combine()
    carried = graph.add(
        "Context (rgthree)",
        model=graph.model,
        clip=graph.clip,
        vae=graph.vae,
        positive=positive,
        negative=negative,
        latent=graph.latent,
    )
    graph.model, graph.vae, graph.latent = carried[1], carried[3], carried[6]
    theirs = _latent(together, graph, graph.sample(carried[4], context_only, carried[5]), "Context (rgthree)")
    assert torch.equal(theirs, _ours(together))


def test_perturbed_attention_guides_our_sampler(together: Server) -> None:
    graph = Graph()
    graph.model = graph.add(
        "PerturbedAttention",
        model=graph.model,
        scale=2.0,
        adaptive_scale=0.0,
        unet_block="middle",
        unet_block_id=0,
        sigma_start=-1.0,
        sigma_end=-1.0,
        rescale=0.0,
        rescale_mode="full",
    )[0]
    latent = _latent(together, graph, graph.sample(*graph.combine()), "PerturbedAttention")
    assert not torch.equal(latent, _ours(together))


def test_tooling_nodes_add_references_by_our_encoder_and_projector(together: Server) -> None:
    graph = Graph()
    reference = graph.add("ETN_ReferenceImage", image=graph.images[0], weight=1.0, range_start=0.0, range_end=1.0)[0]
    positive = graph.add(
        "ETN_ApplyReferenceImages",
        conditioning=graph.text(),
        clip_vision=graph.clip_vision,
        style_model=graph.style_model,
        references=reference,
    )[0]
    _, _, negative = graph.combine()
    _latent(together, graph, graph.ksample(positive, negative), "ETN_ApplyReferenceImages")


def test_tiled_diffusion_tiles_our_model(together: Server) -> None:
    graph = Graph(size=256)
    graph.model = graph.add(
        "TiledDiffusion",
        model=graph.model,
        method="MultiDiffusion",
        tile_width=128,
        tile_height=128,
        tile_overlap=32,
        tile_batch_size=4,
    )[0]
    latent = _latent(together, graph, graph.sample(*graph.combine()), "TiledDiffusion")
    assert latent.shape[-2:] == (32, 32)


def test_essentials_combines_our_conditionings(together: Server) -> None:
    graph = Graph()
    first, context_only, negative = graph.combine()
    second, _, _ = graph.combine(graph.text("mountain"))
    both = graph.add("ConditioningCombineMultiple+", conditioning_1=first, conditioning_2=second)[0]
    latent = _latent(together, graph, graph.sample(both, context_only, negative), "ConditioningCombineMultiple+")
    assert not torch.equal(latent, _ours(together))


def test_custom_scripts_passes_our_prompt_on(together: Server) -> None:
    graph = Graph()
    text = graph.add(
        "StringFunction|pysssss",
        action="append",
        tidy_tags="no",
        text_a=graph.images[4],
        text_b=" at night",
        text_c="",
    )[0]
    _latent(together, graph, graph.sample(*graph.combine(graph.text(text))), "StringFunction|pysssss")


def test_ipadapter_prepares_images_for_our_encoder(together: Server) -> None:
    graph = Graph()
    prepared = graph.add(
        "PrepImageForClipVision",
        image=graph.images[0],
        interpolation="LANCZOS",
        crop_position="center",
        sharpening=0.0,
    )[0]
    _latent(together, graph, graph.sample(*graph.combine(context=graph.context([prepared]))), "PrepImageForClipVision")
