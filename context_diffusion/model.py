"""The Context Diffusion model: f(z_t, t, y, q) of eq. 2 and the encoders around it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .conditioning import combine, encode_text
from .latents import decode_latents, encode_images
from .visual_context import ContextProjector, encode_visual_context, null_context

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


@contextmanager
def _stem_gives(layout_encoder: nn.Module, features: Tensor) -> Iterator[None]:
    """Within it the layout encoder's stem returns `features`, whatever it is shown."""
    handle = layout_encoder.controlnet_cond_embedding.register_forward_hook(lambda *_: features)
    try:
        yield
    finally:
        handle.remove()


class ContextDiffusion(nn.Module):
    """A latent diffusion UNet: text and visual context in one cross-attention, a query as layout.

    Attributes:
        unet: UNet2DConditionModel; its cross-attention width is d_c.
        projector: h^V of width d_v -> d_c.
        layout_encoder: ControlNetModel for the query q, or None.
        vae: AutoencoderKL or AutoencoderTiny, or None where the user's own checkpoint brings it.
        text_encoder: CLIPTextModel of width d_c, or None.
        tokenizer: the CLIPTokenizer that belongs to it, or None.
        image_encoder: CLIPVisionModel of width d_v, or None.
        schedule: noise schedule and prediction type, see `DEFAULT_SCHEDULE`; with `flow` (rectified flow)
            z_t = (1 - s) x + s eps, the UNet predicts eps - x and its timestep is 1000 s.
        info: title, license, resolution (side of the images in pixels), description and the like.
    """

    def __init__(
        self,
        unet: UNet2DConditionModel,
        projector: ContextProjector,
        *,
        layout_encoder: ControlNetModel | None = None,
        vae: AutoencoderKL | AutoencoderTiny | None = None,
        text_encoder: CLIPTextModel | None = None,
        tokenizer: CLIPTokenizer | None = None,
        image_encoder: CLIPVisionModel | None = None,
        schedule: dict | None = None,
        info: dict | None = None,
    ) -> None:
        super().__init__()
        self.unet = unet
        self.projector = projector
        self.layout_encoder = layout_encoder
        self.vae = vae
        self.text_encoder = text_encoder
        self.tokenizer = tokenizer
        self.image_encoder = image_encoder
        self.schedule = {**DEFAULT_SCHEDULE, **(schedule or {})}
        self.info = dict(info or {})

    @classmethod
    def from_stable_diffusion(
        cls, stable_diffusion: str | Path, clip: str | Path, **options: Any
    ) -> ContextDiffusion:
        """Start from a StableDiffusionPipeline folder and a CLIPModel folder on disk.

        Layout encoder and projector are fresh; see `from_stable_diffusion.build_from_stable_diffusion` for
        the options and the errors.
        """
        from .from_stable_diffusion import build_from_stable_diffusion

        return build_from_stable_diffusion(stable_diffusion, clip, **options)

    @property
    def context_tokens(self) -> int:
        """N, the tokens of one averaged visual context."""
        config = self.image_encoder.config
        return (config.image_size // config.patch_size) ** 2 + 1

    def encode_prompts(self, prompts: list[str]) -> Tensor:
        """Prompts -> h^c (B, 77, d_c)."""
        return encode_text(self.tokenizer, self.text_encoder, prompts)

    def encode_context(
        self, images: Tensor, weights: list[float] | None = None, aggregation: str = "mean"
    ) -> Tensor:
        """Context images (k, 3, H, W) in [0, 1] -> projected h^V (1, N, d_c)."""
        tokens = encode_visual_context(self.image_encoder, images, weights, aggregation)
        return self.projector(tokens)

    def null_context(self, batch: int = 1, n_tokens: int | None = None) -> Tensor:
        """No visual context: (batch, N, d_c) zeros."""
        like = self.projector.linear.weight
        return null_context(batch, n_tokens or self.context_tokens, like.shape[0], like)

    def encode_query(self, query: Tensor) -> Tensor:
        """The layout encoder's stem: query images (B, 3, 8h, 8w) in [0, 1] -> features (B, C, h, w).

        The stem does not see z_t or t. It costs as much as half of the UNet, so samplers run it once an
        image, and training once for all noise levels of an image.
        """
        return self.layout_encoder.controlnet_cond_embedding(query)

    def predict(
        self,
        z_t: Tensor,
        timestep: Tensor,
        y: Tensor,
        query: Tensor | None = None,
        layout_strength: float | Tensor = 1.0,
    ) -> Tensor:
        """f(z_t, t, y, q), the prediction of eq. 2.

        Args:
            z_t: noisy latents (B, C, h, w).
            timestep: (B,) or a scalar, in [0, 1000].
            y: [h^c, h^V], (B, 77 + N, d_c).
            query: q as an image (B, 3, 8h, 8w) in [0, 1], or its features from `encode_query`, or None for no
                layout.
            layout_strength: factor of the layout residuals; 0 means no layout.

        Returns:
            eps, v or the flow's velocity, (B, C, h, w), as `schedule["prediction_type"]` says.
        """
        residuals = {}
        if query is not None and self.layout_encoder is not None:
            settings = {"conditioning_scale": layout_strength, "return_dict": False}
            if query.shape[-2:] != z_t.shape[-2:]:
                # An image goes through the encoder's own call, which is what brings offloaded weights to the device.
                down, mid = self.layout_encoder(z_t, timestep, y, query, **settings)
            else:
                with _stem_gives(self.layout_encoder, query):
                    # The stem's output is replaced: what it sees only has to be small.
                    blank = query.new_zeros(query.shape[0], 3, 8, 8)
                    down, mid = self.layout_encoder(z_t, timestep, y, blank, **settings)
            residuals = {"down_block_additional_residuals": down, "mid_block_additional_residual": mid}
        return self.unet(z_t, timestep, y, return_dict=False, **residuals)[0]

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
