"""The conditioning y = [h^c, h^V] that the UNet's cross-attention reads (eq. 3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import ContextDiffusionError


def encode_text(
    tokenizer: Any, text_encoder: Any, prompts: Sequence[str], device: torch.device | None = None
) -> Tensor:
    """Prompts -> h^c, the text encoder's last hidden state, (B, 77, d_c).

    A prompt longer than the encoder's positions is cut. The null text is the encoding of "".

    Args:
        tokenizer: a transformers CLIPTokenizer.
        text_encoder: a transformers CLIPTextModel.
        prompts: one a row.
        device: where the encoder runs, if its weights are elsewhere between calls (offloading).
    """
    ids = tokenizer(
        list(prompts),
        padding="max_length",
        max_length=text_encoder.config.max_position_embeddings,
        truncation=True,
        return_tensors="pt",
    ).input_ids
    return text_encoder(ids.to(device or next(text_encoder.parameters()).device)).last_hidden_state


def combine(text: Tensor, context: Tensor) -> Tensor:
    """y = [h^c, h^V]: text tokens first, then context tokens.

    Args:
        text: h^c (B, T, d_c); its batch may be 1.
        context: h^V (B, N, d_c); its batch may be 1.

    Returns:
        (B, T + N, d_c).

    Raises:
        ContextDiffusionError: the widths or the batches do not fit.
    """
    if text.shape[-1] != context.shape[-1]:
        raise ContextDiffusionError(
            f"text tokens are {text.shape[-1]} wide and context tokens {context.shape[-1]}: "
            "use the projector that belongs to this text encoder"
        )
    batch = max(text.shape[0], context.shape[0])
    if text.shape[0] not in (1, batch) or context.shape[0] not in (1, batch):
        raise ContextDiffusionError(
            f"{text.shape[0]} text rows and {context.shape[0]} context rows: give equal numbers, or one of either"
        )
    context = context.to(text.device, text.dtype)
    return torch.cat([text.expand(batch, -1, -1), context.expand(batch, -1, -1)], dim=1)
