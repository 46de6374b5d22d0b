"""The visual context of a training batch: every picture is encoded once, every row joins its own few."""

from __future__ import annotations

import torch
from torch import Tensor

from ...model.context_diffusion import ContextDiffusion
from ...model.visual_context import Join


def row_contexts(model: ContextDiffusion, tokens: Tensor, weights: Tensor) -> Tensor:
    """h^V of each row, joined as the model reads it; rows without context get the null context.

    Args:
        model: its projector and reading count.
        tokens: of each picture in the batch, (U, N, d_v).
        weights: which pictures are whose context, (R, U) from `episodes.context_matrix`: 1 / k or 0.

    Returns:
        (R, N, d_c); for `concat` (R, k * N, d_c) with the largest k of the batch.
    """
    heard = weights > 0
    aggregation = model.reading.aggregation
    if aggregation == "concat":
        return _concatenated(model, tokens, heard)
    # Section 3.2: the mean over the k context images, token by token; then the projector.
    join = Join({"mean": weights, "sum": heard.to(tokens.dtype)}[aggregation], "sum")
    join.add(tokens)
    context = model.projector(join.result())
    return torch.where(heard.any(1).view(-1, 1, 1), context, model.null_context())


def _concatenated(model: ContextDiffusion, tokens: Tensor, used: Tensor) -> Tensor:
    """Each row's pictures one after another, in the order of the batch; short rows are filled with null contexts."""
    counts = used.sum(1)
    longest = max(1, int(counts.max()))
    # A row's own pictures first, and in their order.
    order = torch.argsort(used.to(torch.uint8), dim=1, descending=True, stable=True)[:, :longest]
    filled = torch.arange(longest, device=used.device) < counts.view(-1, 1)
    context = model.projector(tokens)[order]
    return torch.where(filled.view(*filled.shape, 1, 1), context, model.null_context()).flatten(1, 2)
