"""The Context Diffusion model: f(z_t, t, y, q) of eq. 2 and the encoders around it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..errors import ContextDiffusionError
from .conditioning import combine, encode_text
from .guidance import FULL, NULL
from .latents import decode_latents, encode_images
from .layout import layout_of
from .reading import Reading
from .visual_context import ContextProjector, check_weights, clip_crop, encode_visual_context, n_tokens

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, AutoencoderTiny, ControlNetModel, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer, CLIPVisionModel

PREDICTION_TYPES = ("epsilon", "v_prediction", "flow")

# Stable Diffusion 1.5's schedule: what a model starts from unless it says otherwise.
DEFAULT_SCHEDULE = {
    "prediction_type": "epsilon",
    "num_train_timesteps": 1000,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "rescale_betas_zero_snr": False,
}


class ContextDiffusion(nn.Module):
    """A latent diffusion UNet: text and visual context in one cross-attention, a query as layout.

    Attributes:
        unet: UNet2DConditionModel; its cross-attention width is d_c.
        projector: h^V of width d_v -> d_c.
        layout_encoder: for the query q, or None: a ControlNetModel, or another network, see `layout.ControlNetLayout`.
        vae: AutoencoderKL or AutoencoderTiny, or None where the user's own checkpoint brings it.
        text_encoder: CLIPTextModel of width d_c, or None.
        tokenizer: the CLIPTokenizer that belongs to it, or None.
        image_encoder: CLIPVisionModel of width d_v, or None.
        schedule: noise schedule and prediction type, see `DEFAULT_SCHEDULE`; with `flow` (rectified flow)
            z_t = (1 - s) x + s eps, the UNet predicts eps - x and its timestep is 1000 s.
        info: title, license, resolution (side of the images in pixels), description and the like.
        reading: how it reads its visual context.
        wants_context_queries: whether its context is example pairs, each image with the query that it was drawn after.
        needed_parts: those that such a model cannot be without.
        context_parts: those that it reads its context with.

    Raises:
        ContextDiffusionError: the UNet's cross-attention is not what `reading` is for.
    """

    wants_context_queries = False
    needed_parts: tuple[str, ...] = ("unet", "projector")
    context_parts: tuple[str, ...] = ("image_encoder", "projector")

    def __init__(
        self,
        unet: UNet2DConditionModel,
        projector: ContextProjector | None,
        *,
        layout_encoder: ControlNetModel | nn.Module | None = None,
        vae: AutoencoderKL | AutoencoderTiny | None = None,
        text_encoder: CLIPTextModel | None = None,
        tokenizer: CLIPTokenizer | None = None,
        image_encoder: CLIPVisionModel | None = None,
        schedule: dict | None = None,
        info: dict | None = None,
        reading: Reading | None = None,
    ) -> None:
        super().__init__()
        self.reading = reading or Reading()
        self.reading.check(unet)
        self.unet = unet
        self.projector: Any = projector
        self.layout_encoder = layout_encoder
        self.vae = vae
        self.text_encoder: Any = text_encoder
        self.tokenizer = tokenizer
        self.image_encoder: Any = image_encoder
        self.schedule = {**DEFAULT_SCHEDULE, **(schedule or {})}
        self.info = dict(info or {})

    @property
    def context_tokens(self) -> int:
        """N, the tokens of one averaged visual context.

        Raises:
            ContextDiffusionError: the model has no image encoder.
        """
        if self.image_encoder is None:
            raise ContextDiffusionError(
                "the model has no image encoder, so the length of its null context is unknown: "
                "load one, set context_tokens, or give context_embeds"
            )
        return n_tokens(self.image_encoder.config.image_size, self.image_encoder.config.patch_size)

    def encode_prompts(self, prompts: list[str]) -> Tensor:
        """Prompts -> h^c (B, 77, d_c)."""
        return encode_text(self.tokenizer, self.text_encoder, prompts)

    def encode_context(
        self, images: Tensor, weights: list[float] | None = None, aggregation: str | None = None
    ) -> Tensor:
        """Context images -> projected h^V.

        Args:
            images: (k, 3, H, W) in [0, 1], or those of several rows, (B, k, 3, H, W).
            weights: one an image, all 1 when None.
            aggregation: `mean`, `sum` or `concat`; the model's own when None.

        Returns:
            (1, N, d_c), or (B, N, d_c); k * N tokens for `concat`.
        """
        rows = images if images.ndim == 5 else images[None]
        shares = check_weights(weights, rows.shape[1])
        seen = clip_crop(rows.flatten(0, 1).float(), self.image_encoder.config.image_size)
        tokens = encode_visual_context(
            self.image_encoder,
            seen.unflatten(0, rows.shape[:2]),
            shares,
            aggregation or self.reading.aggregation,
            image_tokens=self.reading.image_tokens,
        )
        return self.projector(tokens)

    def null_context(self, batch: int = 1, n_tokens: int | None = None, like: Tensor | None = None) -> Tensor:
        """No visual context, (batch, N, d_c): zeros, or what `reading` has in their place.

        Args:
            batch: rows.
            n_tokens: N; of one averaged visual context when None.
            like: of the device and dtype that are wanted; the UNet's when None.
        """
        like = next(self.unet.parameters()) if like is None else like
        return self.reading.null_context(self, n_tokens or self.context_tokens, like).expand(batch, -1, -1)

    def guided_inputs(
        self,
        branches: Sequence[str],
        text: Tensor,
        null_text: Tensor,
        context: Tensor | None,
        query: Tensor | None,
        context_queries: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """y and the layout of guidance's branches, one branch's rows after another's.

        Args:
            branches: see `guidance.branch_weights`.
            text: h^c of the prompts, (B, 77, d_c).
            null_text: of "", likewise.
            context: context images (B, k, 3, H, W) in [0, 1], or None.
            query: q (B, 3, 8h, 8w) in [0, 1], or None.
            context_queries: the query of each context image, like `context`, for a model that `wants_context_queries`.
        """
        rows = len(text)
        visual = self.null_context(rows) if context is None else self.encode_context(context)
        null = self.null_context(rows, visual.shape[1])
        y = torch.cat(
            [self.condition(text if name == FULL else null_text, null if name == NULL else visual) for name in branches]
        )
        return y, None if query is None else self.encode_query(query.to(y)).repeat(len(branches), 1, 1, 1)

    def encode_query(self, query: Tensor) -> Tensor:
        """What of the layout does not depend on z_t and t, see `layout.ControlNetLayout.encode_layout`.

        Args:
            query: q (B, 3, 8h, 8w) in [0, 1].

        Raises:
            ContextDiffusionError: the model has no layout encoder.
        """
        if self.layout_encoder is None:
            raise ContextDiffusionError("the model has no layout encoder, so it takes no query: leave the query out")
        return layout_of(self.layout_encoder).encode_layout(query)

    def predict(
        self,
        z_t: Tensor,
        timestep: Tensor,
        y: Tensor,
        query: Tensor | None = None,
        layout_strength: float | Tensor = 1.0,
        context_tokens: int | None = None,
    ) -> Tensor:
        """f(z_t, t, y, q), the prediction of eq. 2.

        Args:
            z_t: noisy latents (B, C, h, w).
            timestep: (B,) or a scalar, in [0, 1000].
            y: [h^c, h^V], (B, 77 + N, d_c).
            query: q as an image (B, 3, 8h, 8w) in [0, 1], or its features from `encode_query`, or None for no
                layout.
            layout_strength: factor of the layout residuals; 0 means no layout.
            context_tokens: how many of y's tokens are h^V, for a `reading` that tells them apart.

        Returns:
            eps, v or the flow's velocity, (B, C, h, w), as `schedule["prediction_type"]` says.
        """
        y = self.reading.attended(y, context_tokens)
        if query is None or self.layout_encoder is None:
            return self.unet(z_t, timestep, y, return_dict=False)[0]
        return layout_of(self.layout_encoder).predict(self.unet, z_t, timestep, y, query, layout_strength)

    def condition(self, text: Tensor, context: Tensor) -> Tensor:
        """y = [h^c, h^V] (eq. 3)."""
        return combine(text, context)

    @torch.no_grad()
    def encode_images(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [0, 1] -> scaled latents (B, C, H/8, W/8), see `latents.encode_images`."""
        return encode_images(self.vae, images)

    def decode_latents(self, latents: Tensor) -> Tensor:
        """Scaled latents (B, C, h, w) -> images (B, 3, 8h, 8w) in [0, 1]."""
        return decode_latents(self.vae, latents)
