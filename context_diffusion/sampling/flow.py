"""What the protocol asks of a sampler, and the plain one over `ContextDiffusion.predict`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from ..choices import SAMPLERS
from ..errors import ContextDiffusionError
from ..model.guidance import FULL, branch_weights, guide
from ..model.latents import vae_scale_factor
from ..model.process import flow_step
from ..ranges import STEPS

if TYPE_CHECKING:
    from ..model.context_diffusion import ContextDiffusion


@dataclass(frozen=True)
class SamplingBatch:
    """One batch of requests; what a setting leaves out is None for the whole batch.

    Attributes:
        seeds: one a row: the same seed starts from the same noise in every setting.
        query: maps (B, 3, H, W) in [0, 1], or None.
        context: context images (B, k, 3, H, W) in [0, 1], or None.
        prompts: one a row, or None.
        size: side of the images in pixels.
        context_queries: the query of each context image (B, k, 3, H, W), for samplers whose
            `wants_context_queries` is true: models that are shown example pairs.
    """

    seeds: tuple[int, ...]
    query: Tensor | None = None
    context: Tensor | None = None
    prompts: tuple[str, ...] | None = None
    size: int = 128
    context_queries: Tensor | None = None


class Sampler(Protocol):
    """Anything that makes images of a batch of requests."""

    def generate(self, batch: SamplingBatch) -> Tensor:
        """Requests -> images (B, 3, H, W) in [0, 1]."""
        ...


class FlowSampler:
    """Steps of a rectified flow from s = 1 to 0 in equal parts (`process.flow_step`), with classifier-free guidance.

    All guidance branches go through the UNet in one batch; text and context are encoded once for all steps.

    Args:
        model: with every part, and prediction type `flow`.
        steps: of the sampler.
        text_guidance: g_txt.
        context_guidance: g_ctx.
        sampler: one of `choices.SAMPLERS`.

    Raises:
        ContextDiffusionError: the model predicts something else than a flow, the number of steps is not
            positive, or there is no such sampler.

    Attributes:
        wants_context_queries: the model's.
    """

    def __init__(
        self,
        model: ContextDiffusion,
        steps: int = 20,
        text_guidance: float = 3.0,
        context_guidance: float = 3.0,
        sampler: str = "lcm",
    ) -> None:
        kind = model.schedule["prediction_type"]
        if kind != "flow":
            raise ContextDiffusionError(
                f"the model predicts {kind!r} and this sampler needs 'flow': sample it with the pipeline"
            )
        STEPS.check(steps=steps)
        if sampler not in SAMPLERS:
            raise ContextDiffusionError(f"sampler is {sampler!r}: give one of {', '.join(SAMPLERS)}")
        self.model = model
        self.sampler = sampler
        self.steps = steps
        self.text_guidance = text_guidance
        self.context_guidance = context_guidance
        self.wants_context_queries = model.wants_context_queries
        self._null_text: Tensor | None = None

    @torch.no_grad()
    def generate(self, batch: SamplingBatch) -> Tensor:
        """Requests -> images (B, 3, size, size) in [0, 1]."""
        model = self.model
        n = len(batch.seeds)
        weights = branch_weights(
            self.text_guidance,
            self.context_guidance,
            has_text=batch.prompts is not None,
            has_context=batch.context is not None,
        )
        if batch.prompts is None and batch.context is None:
            # Every branch would be the null branch: nothing to guide by.
            weights = {FULL: 1.0}
        y, layout = model.guided_inputs(
            tuple(weights),
            self._text(batch.prompts, n),
            self._text(None, n),
            batch.context,
            batch.query,
            batch.context_queries,
        )
        # Each row draws from its own seed, so that an image does not depend on its batch.
        generators = [torch.Generator().manual_seed(seed) for seed in batch.seeds]
        z = self._noise(generators, batch.size).to(y)
        for step in range(self.steps):
            s, s_next = 1.0 - step / self.steps, 1.0 - (step + 1) / self.steps
            timestep = torch.full((n * len(weights),), 1000.0 * s, device=y.device, dtype=y.dtype)
            velocity = model.predict(z.repeat(len(weights), 1, 1, 1), timestep, y, layout)
            velocity = guide(dict(zip(weights, velocity.chunk(len(weights)), strict=True)), weights)
            noise = self._noise(generators, batch.size).to(y) if self.sampler == "lcm" else None
            z = flow_step(z, velocity, s, s_next, noise)
        return model.decode_latents(z).float()

    def _text(self, prompts: Sequence[str] | None, n: int) -> Tensor:
        """h^c of the prompts, or n times the null text, which is encoded once."""
        if prompts is not None:
            return self.model.encode_prompts(list(prompts))
        if self._null_text is None:
            self._null_text = self.model.encode_prompts([""])
        return self._null_text.expand(n, -1, -1)

    def _noise(self, generators: list[torch.Generator], size: int) -> Tensor:
        """One standard normal latent from each generator, for images of `size` pixels."""
        factor = vae_scale_factor(self.model.vae.config)
        shape = (self.model.unet.config.in_channels, size // factor, size // factor)
        return torch.stack([torch.randn(shape, generator=generator) for generator in generators])
