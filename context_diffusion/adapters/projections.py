"""From an image encoder's features to the tokens of an adapter: base, plus and full.

Parameters have the public files' names, so that a file's `image_proj.*` are a module's `state_dict()`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .recognise import AdapterKind

# Width of a head of the resampler, in all public files.
HEAD_WIDTH = 64


class BaseProjection(nn.Module):
    """A pooled embedding (B, d_v) -> a few tokens (B, n, d_c), normalised.

    Args:
        encoder_width: d_v.
        text_width: d_c.
        tokens: n.
    """

    def __init__(self, encoder_width: int, text_width: int, tokens: int = 4) -> None:
        super().__init__()
        self.tokens = tokens
        self.proj = nn.Linear(encoder_width, tokens * text_width)
        self.norm = nn.LayerNorm(text_width)

    def forward(self, embeds: Tensor) -> Tensor:
        """(B, d_v) -> (B, n, d_c)."""
        return self.norm(self.proj(embeds).unflatten(1, (self.tokens, -1)))


class FullProjection(nn.Module):
    """Every hidden state (B, N, d_v) -> a token each (B, N, d_c), normalised.

    Args:
        encoder_width: d_v.
        text_width: d_c.
    """

    def __init__(self, encoder_width: int, text_width: int) -> None:
        super().__init__()
        self.proj = nn.Sequential(
            nn.Linear(encoder_width, encoder_width),
            nn.GELU(),
            nn.Linear(encoder_width, text_width),
            nn.LayerNorm(text_width),
        )

    def forward(self, states: Tensor) -> Tensor:
        """(B, N, d_v) -> (B, N, d_c)."""
        return self.proj(states)


class PlusProjection(nn.Module):
    """Hidden states (B, N, d_v) -> n tokens (B, n, d_c): learned queries that read them in a few layers.

    Args:
        encoder_width: d_v.
        text_width: d_c.
        tokens: n.
        width: of the queries.
        depth: layers.
        attention_width: of a layer's heads together, a multiple of `HEAD_WIDTH`.
        hidden_width: of a layer's feed-forward network.
    """

    def __init__(
        self,
        encoder_width: int,
        text_width: int,
        tokens: int,
        width: int,
        depth: int,
        attention_width: int,
        hidden_width: int,
    ) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.randn(1, tokens, width) / width**0.5)
        self.proj_in = nn.Linear(encoder_width, width)
        self.layers = nn.ModuleList(
            nn.ModuleList([_Reading(width, attention_width), _feed_forward(width, hidden_width)]) for _ in range(depth)
        )
        self.proj_out = nn.Linear(width, text_width)
        self.norm_out = nn.LayerNorm(text_width)

    def forward(self, states: Tensor) -> Tensor:
        """(B, N, d_v) -> (B, n, d_c)."""
        states = self.proj_in(states)
        queries = self.latents.expand(len(states), -1, -1)
        for read, think in self.layers:
            queries = queries + read(states, queries)
            queries = queries + think(queries)
        return self.norm_out(self.proj_out(queries))


class _Reading(nn.Module):
    """Queries attend to the hidden states and to themselves."""

    def __init__(self, width: int, attention_width: int) -> None:
        super().__init__()
        self.heads = attention_width // HEAD_WIDTH
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.to_q = nn.Linear(width, attention_width, bias=False)
        self.to_kv = nn.Linear(width, 2 * attention_width, bias=False)
        self.to_out = nn.Linear(attention_width, width, bias=False)

    def forward(self, states: Tensor, queries: Tensor) -> Tensor:
        """(B, N, w) and (B, n, w) -> (B, n, w)."""
        states, queries = self.norm1(states), self.norm2(queries)
        key, value = self.to_kv(torch.cat([states, queries], dim=1)).chunk(2, dim=-1)
        query, key, value = (
            each.unflatten(2, (self.heads, -1)).transpose(1, 2) for each in (self.to_q(queries), key, value)
        )
        read = nn.functional.scaled_dot_product_attention(query, key, value)
        return self.to_out(read.transpose(1, 2).flatten(2))


def _feed_forward(width: int, hidden_width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.LayerNorm(width),
        nn.Linear(width, hidden_width, bias=False),
        nn.GELU(),
        nn.Linear(hidden_width, width, bias=False),
    )


def new_projection(kind: AdapterKind, shapes: dict[str, tuple[int, ...]]) -> nn.Module:
    """An unfilled projection of a kind.

    Args:
        kind: from `recognise`.
        shapes: of the file's `image_proj.*`, without that prefix: a resampler's sizes.
    """
    if kind.projection == "base":
        return BaseProjection(kind.encoder_width, kind.text_width, kind.tokens)
    if kind.projection == "full":
        return FullProjection(kind.encoder_width, kind.text_width)
    depth = len({name.split(".")[1] for name in shapes if name.startswith("layers.")})
    return PlusProjection(
        kind.encoder_width,
        kind.text_width,
        kind.tokens,
        width=shapes["latents"][2],
        depth=depth,
        attention_width=shapes["layers.0.0.to_q.weight"][0],
        hidden_width=shapes["layers.0.1.1.weight"][0],
    )
