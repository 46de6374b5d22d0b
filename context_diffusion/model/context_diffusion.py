"""The Context Diffusion model: f(z_t, t, y, q) of eq. 2 and the encoders around it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..errors import ContextDiffusionError
from .conditioning import combine, encode_text
from .decoupled import is_decoupled
from .latents import decode_latents, encode_images
from .layout import Layout, is_adapter, predict_with_layout
from .variants import Variant
from .visual_context import ContextProjector, encode_visual_context, null_context

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, AutoencoderTiny, ControlNetModel, T2IAdapter, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer, CLIPVisionModel

    from .prompt_diffusion import ExampleEncoder

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
        projector: h^V of width d_v -> d_c; None for the Prompt Diffusion baseline.
        layout_encoder: ControlNetModel for the query q, or None; a T2IAdapter in an ablation.
        example_encoder: the stem for an example pair, which makes the model the Prompt Diffusion baseline; else None.
        vae: AutoencoderKL or AutoencoderTiny, or None where the user's own checkpoint brings it.
        text_encoder: CLIPTextModel of width d_c, or None.
        tokenizer: the CLIPTokenizer that belongs to it, or None.
        image_encoder: CLIPVisionModel of width d_v, or None.
        schedule: noise schedule and prediction type, see `DEFAULT_SCHEDULE`; with `flow` (rectified flow)
            z_t = (1 - s) x + s eps, the UNet predicts eps - x and its timestep is 1000 s.
        info: title, license, resolution (side of the images in pixels), description and the like.
        variant: what the model does with its visual context in another way than the default.

    Raises:
        ContextDiffusionError: decoupled cross-attention is asked of a UNet that has none, or the other way round.
    """

    def __init__(
        self,
        unet: UNet2DConditionModel,
        projector: ContextProjector | None,
        *,
        layout_encoder: ControlNetModel | T2IAdapter | None = None,
        example_encoder: ExampleEncoder | None = None,
        vae: AutoencoderKL | AutoencoderTiny | None = None,
        text_encoder: CLIPTextModel | None = None,
        tokenizer: CLIPTokenizer | None = None,
        image_encoder: CLIPVisionModel | None = None,
        schedule: dict | None = None,
        info: dict | None = None,
        variant: Variant | None = None,
    ) -> None:
        super().__init__()
        self.variant = variant or Variant()
        decoupled = self.variant.cross_attention == "decoupled"
        controlnet = None if is_adapter(layout_encoder) else layout_encoder
        for name, network in (("UNet", unet), ("layout encoder", controlnet)):
            if network is not None and is_decoupled(network) != decoupled:
                raise ContextDiffusionError(
                    f"cross_attention is {self.variant.cross_attention!r} and the {name}'s is not: "
                    "load the whole model with load_checkpoint"
                )
        self.unet = unet
        self.projector = projector
        self.layout_encoder = layout_encoder
        self.example_encoder = example_encoder
        self.vae = vae
        self.text_encoder = text_encoder
        self.tokenizer = tokenizer
        self.image_encoder = image_encoder
        self.schedule = {**DEFAULT_SCHEDULE, **(schedule or {})}
        self.info = dict(info or {})

    @property
    def context_tokens(self) -> int:
        """N, the tokens of one averaged visual context."""
        config = self.image_encoder.config
        return (config.image_size // config.patch_size) ** 2 + 1

    def encode_prompts(self, prompts: list[str]) -> Tensor:
        """Prompts -> h^c (B, 77, d_c)."""
        return encode_text(self.tokenizer, self.text_encoder, prompts)

    def encode_context(
        self, images: Tensor, weights: list[float] | None = None, aggregation: str | None = None
    ) -> Tensor:
        """Context images (k, 3, H, W) in [0, 1] -> projected h^V (1, N, d_c); `aggregation` is the model's own."""
        variant = self.variant
        tokens = encode_visual_context(
            self.image_encoder,
            images,
            weights,
            aggregation or variant.aggregation,
            hidden_state=variant.context_hidden_state,
        )
        return self.projector(tokens)

    def null_context(self, batch: int = 1, n_tokens: int | None = None) -> Tensor:
        """No visual context: (batch, N, d_c) zeros, or a black image's tokens as often as they fit into `n_tokens`."""
        like = self.projector.linear.weight
        n_tokens = n_tokens or self.context_tokens
        if self.variant.null_context == "zeros":
            return null_context(batch, n_tokens, like.shape[0], like)
        size = self.image_encoder.config.image_size
        black = self.encode_context(torch.zeros(1, 3, size, size, device=like.device))
        return black.repeat(1, n_tokens // black.shape[1], 1).expand(batch, -1, -1)

    def encode_query(self, query: Tensor, example: tuple[Tensor, Tensor] | None = None) -> Layout:
        """What of the layout does not depend on z_t and t: query images (B, 3, 8h, 8w) in [0, 1] -> features.

        Args:
            query: q.
            example: the baseline's example pair, its query and its picture, each like `query`.

        Returns:
            The features of the ControlNet's stem, (B, C, h, w); all that a T2I adapter gives, one tensor for each
            resolution.

        Raises:
            ContextDiffusionError: the model has no layout encoder.

        The stem does not see z_t or t. It costs as much as half of the UNet, so samplers run it once an
        image, and training once for all noise levels of an image.
        """
        if self.layout_encoder is None:
            raise ContextDiffusionError("the model has no layout encoder, so it takes no query: leave the query out")
        if is_adapter(self.layout_encoder):
            return tuple(self.layout_encoder(query))
        features = self.layout_encoder.controlnet_cond_embedding(query)
        return features if example is None else features + self.example_encoder(*example)

    def predict(
        self,
        z_t: Tensor,
        timestep: Tensor,
        y: Tensor,
        query: Layout | None = None,
        layout_strength: float | Tensor = 1.0,
        context_tokens: int | None = None,
    ) -> Tensor:
        """f(z_t, t, y, q), the prediction of eq. 2.

        Args:
            z_t: noisy latents (B, C, h, w).
            timestep: (B,) or a scalar, in [0, 1000].
            y: [h^c, h^V], (B, 77 + N, d_c); h^c alone for the Prompt Diffusion baseline.
            query: q as an image (B, 3, 8h, 8w) in [0, 1], or its features from `encode_query`, or None for no
                layout.
            layout_strength: factor of the layout residuals; 0 means no layout.
            context_tokens: how many of y's tokens are h^V, which decoupled cross-attention must know; all behind
                the first 77 when None.

        Returns:
            eps, v or the flow's velocity, (B, C, h, w), as `schedule["prediction_type"]` says.
        """
        if self.variant.cross_attention == "decoupled":
            text = y.shape[1] - context_tokens if context_tokens else 77
            y = (y[:, :text], y[:, text:])
        if query is None or self.layout_encoder is None:
            return self.unet(z_t, timestep, y, return_dict=False)[0]
        return predict_with_layout(self.unet, self.layout_encoder, z_t, timestep, y, query, layout_strength)

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
