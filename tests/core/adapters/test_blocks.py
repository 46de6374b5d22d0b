from __future__ import annotations

import pytest

from context_diffusion import ContextDiffusionError
from context_diffusion.adapters.blocks import layer_strengths

from .tiny_adapters import tiny_unet


def names(unet):
    return [name for name in unet.attn_processors if name.endswith("attn2.processor")]


@pytest.mark.parametrize(
    ("family", "blocks", "block"),
    [
        ("sdxl", "style", "up_blocks.0.attentions.1."),
        ("sdxl", "layout", "down_blocks.2.attentions.1."),
        ("sd15", "style", "up_blocks.1."),
    ],
)
def test_blocks_are_those_of_instantstyle(family, blocks, block):
    layers = names(tiny_unet(family))
    chosen = [name for name, strength in zip(layers, layer_strengths(blocks, len(layers)), strict=True) if strength]
    assert chosen == [name for name in layers if name.startswith(block)]
    assert chosen


def test_both_and_all():
    both = layer_strengths("style and layout", 70)
    assert [a + b for a, b in zip(layer_strengths("style", 70), layer_strengths("layout", 70), strict=True)] == both
    assert layer_strengths("all", 16) == [1.0] * 16


def test_a_list_says_it_number_by_number():
    assert layer_strengths("all", 6, "0-1: 0.5, 3, 5: -1") == [0.5, 0.5, 0.0, 1.0, 0.0, -1.0]


@pytest.mark.parametrize(
    ("blocks", "layers", "listed", "words"),
    [
        ("layout", 16, "", "no blocks of layout are known.*0 to 15"),
        ("style", 7, "", "no blocks of style"),
        ("colour", 16, "", "choose one of all"),
        ("all", 16, "x: 1", "expected numbers with a strength"),
        ("all", 16, "3-16: 1", "from 0 to 15"),
        ("all", 16, "5-3: 1", "from 0 to 15"),
        ("all", 16, "3: inf", "finite"),
    ],
)
def test_wrong_blocks(blocks, layers, listed, words):
    with pytest.raises(ContextDiffusionError, match=words):
        layer_strengths(blocks, layers, listed)
