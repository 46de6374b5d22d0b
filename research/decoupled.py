"""Decoupled cross-attention: K, V of its own for the visual context, in the manner of IP-Adapter (arXiv 2308.06721).

Concatenated (the default):  Attn(Q, [h^c, h^V] W_K, [h^c, h^V] W_V)
Decoupled:                   Attn(Q, h^c W_K, h^c W_V) + Attn(Q, h^V W'_K, h^V W'_V)

W'_K and W'_V start as copies of the layer's own W_K and W_V. The network gets the pair (h^c, h^V) in place of their
concatenation; zero tokens of h^V add exactly nothing.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from context_diffusion.errors import ContextDiffusionError

# Tokens of a text that is not cut in pieces.
TEXT_TOKENS = 77


class DecoupledAttention(nn.Module):
    """The processor of one cross-attention of diffusers, with the weights W'_K and W'_V.

    Args:
        width: d_c, of the tokens.
        inner: of keys and values, all heads together.
    """

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.to_k = nn.Linear(width, inner, bias=False)
        self.to_v = nn.Linear(width, inner, bias=False)

    def forward(
        self, attn: nn.Module, hidden_states: Tensor, encoder_hidden_states: tuple[Tensor, Tensor], **_: object
    ) -> Tensor:
        """Hidden states (B, P, c) and (h^c, h^V) -> (B, P, c)."""
        if isinstance(encoder_hidden_states, Tensor):
            raise ContextDiffusionError(
                "the UNet's cross-attention is decoupled and the model's is not: load the whole model with "
                "load_checkpoint"
            )
        text, context = encoder_hidden_states
        query = _heads(attn.to_q(hidden_states), attn.heads)
        read = _attend(query, attn.to_k(text), attn.to_v(text))
        read = read + _attend(query, self.to_k(context), self.to_v(context))
        read = attn.to_out[1](attn.to_out[0](read))
        if attn.residual_connection:
            read = read + hidden_states
        return read / attn.rescale_output_factor


def decouple(network: nn.Module) -> None:
    """Give every cross-attention of a UNet2DConditionModel or a ControlNetModel its own K, V for the context."""
    for attn in _cross_attentions(network):
        processor = DecoupledAttention(attn.to_k.in_features, attn.to_k.out_features)
        processor.to(attn.to_k.weight.device, attn.to_k.weight.dtype)
        with torch.no_grad():
            processor.to_k.weight.copy_(attn.to_k.weight)
            processor.to_v.weight.copy_(attn.to_v.weight)
        attn.set_processor(processor)


def is_decoupled(network: nn.Module) -> bool:
    """Whether the cross-attentions of a network have K, V of their own for the context: the first tells."""
    first = next(_cross_attentions(network), None)
    return first is not None and isinstance(first.processor, DecoupledAttention)


def check_decoupled(unet: nn.Module) -> None:
    """Refuse a UNet without such weights.

    Raises:
        ContextDiffusionError: its cross-attentions are as diffusers made them.
    """
    if not is_decoupled(unet):
        raise ContextDiffusionError(
            "cross_attention is 'decoupled' and the UNet's is not: load the whole model with load_checkpoint"
        )


def split(y: Tensor, context_tokens: int | None) -> tuple[Tensor, Tensor]:
    """y = [h^c, h^V] -> the pair (h^c, h^V); without their number, all tokens behind the first 77 are h^V."""
    text = y.shape[1] - context_tokens if context_tokens else TEXT_TOKENS
    return y[:, :text], y[:, text:]


def _cross_attentions(network: nn.Module) -> Iterator[nn.Module]:
    return (module for name, module in network.named_modules() if name.rpartition(".")[2] == "attn2")


def _attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Queries (B, heads, P, d), keys and values (B, T, heads * d) -> (B, P, heads * d)."""
    heads = query.shape[1]
    read = scaled_dot_product_attention(query, _heads(key, heads), _heads(value, heads))
    return read.transpose(1, 2).flatten(2)


def _heads(tokens: Tensor, heads: int) -> Tensor:
    return tokens.unflatten(2, (heads, -1)).transpose(1, 2)
