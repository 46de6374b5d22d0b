"""What the protocol asks of a sampler, and the plain one over `ContextDiffusion.predict`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from ..errors import ContextDiffusionError
from ..guidance import FULL, NULL, branch_weights, guide
from ..latents import vae_scale_factor
from ..visual_context import clip_preprocess

if TYPE_CHECKING:
    from ..model import ContextDiffusion


@dataclass(frozen=True)
class SamplingBatch:
    """One batch of requests; what a setting leaves out is None for the whole batch.

    Attributes:
        seeds: one a row: the same seed starts from the same noise in every setting.
        query: maps (B, 3, H, W) in [0, 1], or None.
        context: context images (B, k, 3, H, W) in [0, 1], or None.
        prompts: one a row, or None.
        size: side of the images in pixels.
    """

    seeds: tuple[int, ...]
    query: Tensor | None = None
    context: Tensor | None = None
    prompts: tuple[str, ...] | None = None
    size: int = 128


class Sampler(Protocol):
    """Anything that makes images of a batch of requests."""

    def generate(self, batch: SamplingBatch) -> Tensor:
        """Requests -> images (B, 3, H, W) in [0, 1]."""
        ...


class FlowSampler:
    """Euler steps of a rectified flow from s = 1 to 0 in equal parts, with classifier-free guidance.

    All guidance branches go through the UNet in one batch; text and context are encoded once for all steps.

    Args:
        model: with every part, and prediction type `flow`.
        steps: Euler steps.
        text_guidance: g_txt.
        context_guidance: g_ctx.

    Raises:
        ContextDiffusionError: the model predicts something else than a flow, or the number of steps is not
            positive.
    """

    def __init__(
        self,
        model: ContextDiffusion,
        steps: int = 20,
        text_guidance: float = 3.0,
        context_guidance: float = 3.0,
    ) -> None:
        kind = model.schedule["prediction_type"]
        if kind != "flow":
            raise ContextDiffusionError(
                f"the model predicts {kind!r} and this sampler needs 'flow': sample it with the pipeline"
            )
        if steps < 1:
            raise ContextDiffusionError(f"steps is {steps}: give at least 1")
        self.model = model
        self.steps = steps
        self.text_guidance = text_guidance
        self.context_guidance = context_guidance
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
        text, context = self._text(batch, n), self._context(batch, n)
        null_text, null_context = self._text(None, n), model.null_context(n)
        branches = []
        for name in weights:
            branches.append(
                model.condition(
                    text if name == FULL else null_text, null_context if name == NULL else context
                )
            )
        y = torch.cat(branches)
        query = None
        if batch.query is not None:
            query = model.encode_query(batch.query.to(y)).repeat(len(weights), 1, 1, 1)
        z = self._noise(batch).to(y)
        for step in range(self.steps):
            s, s_next = 1.0 - step / self.steps, 1.0 - (step + 1) / self.steps
            timestep = torch.full((n * len(weights),), 1000.0 * s, device=y.device, dtype=y.dtype)
            velocity = model.predict(z.repeat(len(weights), 1, 1, 1), timestep, y, query)
            velocity = guide(dict(zip(weights, velocity.chunk(len(weights)), strict=True)), weights)
            z = z + (s_next - s) * velocity
        return model.decode_latents(z).float()

    def _text(self, batch: SamplingBatch | None, n: int) -> Tensor:
        if batch is not None and batch.prompts is not None:
            return self.model.encode_prompts(list(batch.prompts))
        if self._null_text is None:
            self._null_text = self.model.encode_prompts([""])
        return self._null_text.expand(n, -1, -1)

    def _context(self, batch: SamplingBatch, n: int) -> Tensor:
        model = self.model
        if batch.context is None:
            return model.null_context(n)
        parameter = next(model.image_encoder.parameters())
        k = batch.context.shape[1]
        images = clip_preprocess(batch.context.flatten(0, 1).float(), model.image_encoder.config.image_size)
        tokens = model.image_encoder(pixel_values=images.to(parameter)).last_hidden_state
        return model.projector(tokens.unflatten(0, (n, k)).mean(1))

    def _noise(self, batch: SamplingBatch) -> Tensor:
        """Each row from its own seed, so that an image does not depend on its batch."""
        factor = vae_scale_factor(self.model.vae.config)
        shape = (self.model.unet.config.in_channels, batch.size // factor, batch.size // factor)
        return torch.stack(
            [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in batch.seeds]
        )
