"""An adapter file through our parts and through diffusers' own loader: the same prediction."""

from __future__ import annotations

import pytest
import torch

from context_diffusion.adapters.attention import VisualAttention, log_weights
from context_diffusion.adapters.file import adapter_of

from .tiny_adapters import TEXT_WIDTH, features, tiny_file, tiny_unet


class OurProcessor:
    """diffusers' attention with our visual keys and values behind it, as the paper of IP-Adapter has it."""

    def __init__(self, attention: VisualAttention, layer: int, tokens: torch.Tensor, strength: float, weights=None):
        self.attention, self.layer, self.tokens, self.strength = attention, layer, tokens, strength
        self.weights = weights

    def __call__(self, attn, hidden_states, encoder_hidden_states, attention_mask=None, **_):
        query, key, value = attn.to_q(hidden_states), attn.to_k(encoder_hidden_states), attn.to_v(encoder_hidden_states)
        split = [each.unflatten(2, (attn.heads, -1)).transpose(1, 2) for each in (query, key, value)]
        read = torch.nn.functional.scaled_dot_product_attention(*split).transpose(1, 2).flatten(2)
        read = read + self.strength * self.attention(self.layer, query, self.tokens, attn.heads, self.weights)
        return attn.to_out[0](read)


def predict(unet, added=None):
    torch.manual_seed(4)
    noisy, text = torch.randn(1, 4, 8, 8), torch.randn(1, 77, TEXT_WIDTH)
    with torch.no_grad():
        return unet(noisy, torch.tensor(500), text, added_cond_kwargs=added).sample


def ours(unet, tensors, tokens_of, strength, weights=None):
    adapter = adapter_of(tensors)
    with torch.no_grad():
        tokens = tokens_of(adapter.projection)
    names = [name for name in unet.attn_processors if name.endswith("attn2.processor")]
    kept = unet.attn_processors
    unet.set_attn_processor(
        kept
        | {name: OurProcessor(adapter.attention, layer, tokens, strength, weights) for layer, name in enumerate(names)}
    )
    try:
        return predict(unet)
    finally:
        unet.set_attn_processor(kept)


def relative(got, expected):
    return (got - expected).norm() / expected.norm()


@pytest.mark.parametrize(
    ("family", "projection"),
    [("sd15", "base"), ("sd15", "plus"), ("sd15", "full"), ("sdxl", "base"), ("sdxl", "plus")],
)
def test_the_prediction_is_that_of_diffusers(family, projection):
    unet = tiny_unet(family)
    tensors, seen = tiny_file(projection, unet), features(projection)
    plain = predict(unet)
    got = ours(unet, tensors, lambda projection: projection(seen), 0.8)
    nested = {
        name: {key[len(name) + 1 :]: value for key, value in tensors.items() if key.startswith(name)}
        for name in ("image_proj", "ip_adapter")
    }
    unet._load_ip_adapter_weights([nested], low_cpu_mem_usage=False)
    for processor in unet.attn_processors.values():
        if hasattr(processor, "scale"):
            processor.scale = [0.8]
    expected = predict(unet, {"image_embeds": [seen[:, None]]})
    assert relative(got, expected) < 1e-5
    assert relative(plain, expected) > 1e-3


@pytest.fixture
def double():
    """Everything in float64: what is equal by the formula is equal to the last digits."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def test_weight_two_is_the_image_twice_and_weight_zero_none(double):
    unet = tiny_unet()
    tensors, seen = tiny_file("plus", unet), features("plus", 3)

    def concatenated(images):
        return lambda projection: projection(seen[images]).flatten(0, 1)[None]

    weighted = ours(unet, tensors, concatenated([0, 1, 2]), 1.0, log_weights([1, 2, 0], 16))
    twice = ours(unet, tensors, concatenated([0, 1, 1]), 1.0)
    assert relative(weighted, twice) < 1e-12
    assert relative(weighted, ours(unet, tensors, concatenated([0]), 1.0)) > 1e-3


def test_no_token_with_weight_reads_nothing():
    unet = tiny_unet()
    tensors, seen = tiny_file("plus", unet), features("plus", 2)
    got = ours(unet, tensors, lambda p: p(seen).flatten(0, 1)[None], 1.0, log_weights([0, 0], 16))
    assert torch.equal(got, ours(unet, tensors, lambda p: p(seen[:1]), 0.0))
