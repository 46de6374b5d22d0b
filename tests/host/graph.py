"""The graphs that the sampling tests share: our loader, three conditionings and something to sample."""

from __future__ import annotations

import uuid

import torch
from PIL import Image

from .prompt import Link, NodeRef, Prompt
from .server import History, Server

MODEL_NAME = "emoji-128 (bundled)"
SIZE = 128


def put_image(server: Server, seed: int, size: int = SIZE) -> str:
    """A picture with shapes and colors, the same for a seed, in the server's input folder; its name."""
    name = f"picture-{seed}-{size}.png"
    path = server.base / "input" / name
    if not path.exists():
        generator = torch.Generator().manual_seed(seed)
        small = torch.rand(3, 6, 6, generator=generator)
        large = torch.nn.functional.interpolate(small[None], size=(size, size), mode="bicubic")[0].clamp(0, 1)
        Image.fromarray((large.permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()).save(path)
    return name


class SamplingGraph(Prompt):
    """Loader, three texts as positive, negative and context only, and an empty latent.

    The sampler does not ask what its conditionings hold, so that texts stand in for contexts here; the graph that
    people build is `context_conditionings`.
    """

    def __init__(self, server: Server, batch_size: int = 1, loader: str = "ContextDiffusionLoader") -> None:
        super().__init__()
        self.server = server
        self.loader = self.add(loader, model_name=MODEL_NAME)
        self.model, self.clip, self.vae, self.clip_vision, self.style_model, self.control_net = (
            self.loader[i] for i in range(6)
        )
        self.positive = self.text("a red flag on a white tent")
        self.negative = self.text("")
        self.context_only = self.text("flat colors, thick outlines")
        self.latent: Link = self.add("EmptyLatentImage", width=SIZE, height=SIZE, batch_size=batch_size)[0]

    def text(self, text: str) -> Link:
        return self.add("CLIPTextEncode", clip=self.clip, text=text)[0]

    def image(self, seed: int, size: int = SIZE) -> Link:
        return self.add("LoadImage", image=put_image(self.server, seed, size))[0]

    def encoded(self, seed: int) -> Link:
        """A picture's latent."""
        return self.add("VAEEncode", pixels=self.image(seed), vae=self.vae)[0]

    def context_conditionings(self, query: bool = True, context_seeds: tuple[int, ...] = (1, 2)) -> None:
        """Positive, negative and context only from context images, a prompt and (if `query`) a query image."""
        images = {f"images.image{i}": self.image(seed) for i, seed in enumerate(context_seeds)}
        encoded = self.add(
            "ContextDiffusionEncodeVisualContext", images, clip_vision=self.clip_vision, weights="", fit="crop",
            aggregation="mean",
        )  # fmt: skip
        combined = self.add(
            "ContextDiffusionCombine", style_model=self.style_model, visual_context=encoded[0],
            positive=self.positive, negative=self.negative, strength=1.0,
        )  # fmt: skip
        self.positive, self.context_only, self.negative = (combined[i] for i in range(3))
        if query:
            self.apply_layout()

    def apply_layout(self, seed: int = 3, **changes: object) -> None:
        settings = {"map": "none", "strength": 1.0, "start_percent": 0.0, "end_percent": 1.0, **changes}
        layout = self.add(
            "ContextDiffusionApplyQueryLayout", settings, positive=self.positive, negative=self.negative,
            context_only=self.context_only, control_net=self.control_net, image=self.image(seed),
        )  # fmt: skip
        self.positive, self.context_only, self.negative = (layout[i] for i in range(3))

    def _settings(self, names: tuple[str, ...], changes: dict) -> dict:
        settings = {
            "model": self.model, "positive": self.positive, "negative": self.negative, "latent_image": self.latent,
            "seed": 7, "steps": 4, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0,
        }  # fmt: skip
        return {name: value for name, value in {**settings, **changes}.items() if name not in names}

    def ours(self, text: float = 3.0, context: float = 3.0, third: bool = True, **changes: object) -> NodeRef:
        """Our sampler."""
        if third:
            changes.setdefault("context_only", self.context_only)
        return self.add(
            "ContextDiffusionSampler",
            self._settings((), changes),
            text_guidance_scale=text,
            context_guidance_scale=context,
        )

    def ksampler(self, cfg: float = 3.0, **changes: object) -> NodeRef:
        """The host's sampler."""
        return self.add("KSampler", self._settings((), changes), cfg=cfg)

    def guider(self, text: float = 3.0, context: float = 3.0, third: bool = True, **changes: object) -> NodeRef:
        """Our guider."""
        inputs = {"model": self.model, "positive": self.positive, "negative": self.negative}
        if third:
            inputs["context_only"] = self.context_only
        return self.add(
            "ContextDiffusionGuider",
            {**inputs, **changes},
            text_guidance_scale=text,
            context_guidance_scale=context,
        )

    def custom(self, guider: Link, steps: int = 4, sampler: str = "euler", denoise: float = 1.0) -> NodeRef:
        """SamplerCustomAdvanced with the settings that `ours` and `ksampler` have."""
        sigmas = self.add("BasicScheduler", model=self.model, scheduler="simple", steps=steps, denoise=denoise)
        return self.add(
            "SamplerCustomAdvanced",
            noise=self.add("RandomNoise", noise_seed=7)[0],
            guider=guider,
            sampler=self.add("KSamplerSelect", sampler_name=sampler)[0],
            sigmas=sigmas[0],
            latent_image=self.latent,
        )

    def counted(self, model: Link | None = None, wait: float = 0.0) -> tuple[Link, str]:
        """A MODEL that counts its calls, and the tag to ask for them."""
        tag = uuid.uuid4().hex
        return self.add("ProbeCountCalls", model=model or self.model, tag=tag, wait=wait)[0], tag

    def save(self, value: Link) -> NodeRef:
        # The tag makes every probe another one: old hosts tell nothing of an output node whose result is cached.
        return self.add("ProbeSave", value=value, tag=uuid.uuid4().hex)

    def latents(self, **samplers: NodeRef) -> dict[str, torch.Tensor]:
        """Run the graph; the latents of each sampler."""
        probes = {name: self.save(node[0]) for name, node in samplers.items()}
        history = self.server.run(self)
        return {name: self.read(history, probe) for name, probe in probes.items()}

    def read(self, history: History, probe: NodeRef) -> torch.Tensor:
        return self.server.tensors(history, probe)["samples"]


def calls(server: Server, tag: str) -> list[int]:
    """Rows of each call of the UNet that `SamplingGraph.counted` counts."""
    return server.get(f"/probes/calls/{tag}")


def relative(got: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference over the largest value."""
    return ((got - expected).abs().max() / expected.abs().max()).item()
