"""Keys and values of their own for visual tokens, in every cross-attention of a UNet (arXiv 2308.06721, eq. 5).

Attn(Q, K_c, V_c) + strength * Attn(Q, h^V W'_K, h^V W'_V)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention


class VisualAttention(nn.Module):
    """W'_K and W'_V of each cross-attention, in the order of the public files: the way down, the way up, the middle.

    Args:
        text_width: d_c, of the tokens.
        inner_widths: of keys and values, all heads together, one for each cross-attention.
    """

    def __init__(self, text_width: int, inner_widths: Sequence[int]) -> None:
        super().__init__()
        self.to_k = nn.ModuleList(nn.Linear(text_width, width, bias=False) for width in inner_widths)
        self.to_v = nn.ModuleList(nn.Linear(text_width, width, bias=False) for width in inner_widths)

    def forward(
        self, layer: int, query: Tensor, tokens: Tensor, heads: int, log_weights: Tensor | None = None
    ) -> Tensor:
        """What queries read of the visual tokens in one cross-attention.

        Args:
            layer: its number in the files' order.
            query: the UNet's own, (B, P, heads * d).
            tokens: h^V behind the projection, (B, T, d_c).
            heads: of that attention.
            log_weights: log of each token's weight, (T,) or (B, T), see `log_weights`. A token of weight w counts in
                the softmax as w of it would, one of weight 0 as none; rows of none alone read nothing.

        Returns:
            (B, P, heads * d), to be added to what is read of the text.
        """
        key, value = self.to_k[layer](tokens), self.to_v[layer](tokens)
        query, key, value = (each.unflatten(2, (heads, -1)).transpose(1, 2) for each in (query, key, value))
        if log_weights is None:
            read = scaled_dot_product_attention(query, key, value)
            return read.transpose(1, 2).flatten(2)
        log_weights = log_weights.to(query).expand(len(query), -1)
        read = scaled_dot_product_attention(query, key, value, attn_mask=log_weights[:, None, None, :])
        read = read.transpose(1, 2).flatten(2)
        # A softmax over nothing has no value.
        empty = torch.isneginf(log_weights).all(dim=1)
        return torch.where(empty.view(-1, 1, 1), torch.zeros_like(read), read)


def log_weights(weights: Sequence[float] | Tensor, tokens: int) -> Tensor:
    """Weights of k images as what their tokens' logits get, (k * tokens,): log w, and -inf for w = 0.

    Args:
        weights: one an image, finite and not negative.
        tokens: of one image.
    """
    return torch.as_tensor(weights, dtype=torch.get_default_dtype()).log().repeat_interleave(tokens)
