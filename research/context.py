"""Two more ablations of the visual context: another hidden state of the image encoder, and a black image for none."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from context_diffusion.errors import ContextDiffusionError
from context_diffusion.model.context_diffusion import ContextDiffusion


def penultimate_tokens(image_encoder: nn.Module, pixels: Tensor) -> Tensor:
    """What the image encoder's last layer reads, (B, N, d_v), in place of what it gives."""
    return image_encoder(pixel_values=pixels, output_hidden_states=True).hidden_states[-2]


def black_context(model: ContextDiffusion, n_tokens: int, like: Tensor) -> Tensor:
    """A black image through encoder and projector (the paper's way), as often as it fits into `n_tokens`."""
    if model.image_encoder is None:
        raise ContextDiffusionError("the model's null context is a black image and it has no image encoder: load one")
    size = model.image_encoder.config.image_size
    black = model.encode_context(torch.zeros(1, 3, size, size, device=like.device))
    return black.repeat(1, n_tokens // black.shape[1], 1).to(like)
