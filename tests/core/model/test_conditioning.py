"""y = [h^c, h^V] and eq. 3, computed from a layer's own weights."""

import math

import pytest
import torch

from context_diffusion.errors import ContextDiffusionError
from context_diffusion.model.conditioning import combine, encode_text

from ..tiny import tiny_model


@pytest.fixture(scope="module")
def model():
    return tiny_model()


def test_cross_attention_reads_text_and_context_as_in_eq_3(model):
    layer = model.unet.down_blocks[0].attentions[0].transformer_blocks[0].attn2
    generator = torch.Generator().manual_seed(0)
    text = torch.randn(2, 77, 32, generator=generator)
    context = torch.randn(2, 5, 32, generator=generator)
    hidden = torch.randn(2, 16, layer.to_q.in_features, generator=generator)

    y = torch.cat([text, context], dim=1)
    expected = torch.zeros(2, 16, layer.to_q.out_features)
    head = layer.to_q.out_features // layer.heads
    assert layer.heads > 1
    for i in range(layer.heads):
        rows = slice(i * head, (i + 1) * head)
        query = hidden @ layer.to_q.weight[rows].T
        key, value = y @ layer.to_k.weight[rows].T, y @ layer.to_v.weight[rows].T
        scores = torch.exp(query @ key.transpose(1, 2) / math.sqrt(head))
        expected[..., rows] = scores / scores.sum(-1, keepdim=True) @ value
    expected = expected @ layer.to_out[0].weight.T + layer.to_out[0].bias

    got = layer(hidden, encoder_hidden_states=combine(text, context))
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def test_zero_tokens_take_attention_but_say_nothing(model):
    """A null context is not the same as none: its tokens have score 0 and value 0."""
    layer = model.unet.down_blocks[0].attentions[0].transformer_blocks[0].attn2
    text, hidden = torch.randn(1, 77, 32), torch.randn(1, 4, layer.to_q.in_features)
    with_null = layer(hidden, encoder_hidden_states=combine(text, torch.zeros(1, 5, 32)))
    without = layer(hidden, encoder_hidden_states=text)
    assert not torch.allclose(with_null, without, atol=1e-4)


def test_combine_puts_text_first_and_shares_a_single_row():
    text, context = torch.randn(3, 7, 4), torch.randn(1, 2, 4)
    y = combine(text, context)
    assert y.shape == (3, 9, 4)
    assert torch.equal(y[:, :7], text) and torch.equal(y[2, 7:], context[0])
    assert combine(text[:1], context.expand(5, -1, -1)).shape == (5, 9, 4)


@pytest.mark.parametrize(
    "text, context, message",
    [
        ((1, 7, 4), (1, 2, 5), "4 wide and context tokens 5"),
        ((2, 7, 4), (3, 2, 4), "2 text rows and 3 context rows"),
    ],
)
def test_combine_refuses_what_does_not_fit(text, context, message):
    with pytest.raises(ContextDiffusionError, match=message):
        combine(torch.zeros(text), torch.zeros(context))


def test_text_is_padded_cut_and_independent_of_its_batch(model):
    prompts = ["a moon", "", "a very long prompt " * 60]
    rows = encode_text(model.tokenizer, model.text_encoder, prompts)
    assert rows.shape == (3, 77, 32)
    for prompt, row in zip(prompts, rows, strict=True):
        alone = encode_text(model.tokenizer, model.text_encoder, [prompt])[0]
        torch.testing.assert_close(row, alone, rtol=0, atol=1e-5)
    assert not torch.allclose(rows[0], rows[1])
