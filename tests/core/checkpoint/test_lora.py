"""LoRA files: what they add to the weights, and files that do not fit."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from context_diffusion.checkpoint.lora import apply_lora, lora_names, save_lora
from context_diffusion.errors import ContextDiffusionError

from ..tiny import tiny_model

QUERY = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
TEXT = "lora_te_text_model_encoder_layers_0_self_attn_q_proj"


def some_lora(path, rank=3):
    """The UNet's linear layers and convolutions and the text encoder's layers, all with random changes."""
    names = {name: weight for name, weight in lora_names(tiny_model()).items() if "embedding" not in name}
    layers = {}
    for name, weight in names.items():
        out, width = weight.flatten(1).shape
        layers[name] = torch.randn(out, rank) / 8, torch.randn(rank, width)
    save_lora(path, layers, {"modelspec.title": "some"})
    return path


def test_a_lora_adds_its_product_and_can_be_taken_away(tmp_path):
    file = some_lora(tmp_path / "a.safetensors")
    model, before = tiny_model(), lora_names(tiny_model())
    apply_lora(model, file, 0.5)
    tensors = load_file(file)
    assert QUERY in before and TEXT in before
    layers = {name.partition(".")[0] for name in tensors}
    for name, weight in lora_names(model).items():
        expected = before[name]
        if name in layers:
            up, down = (tensors[f"{name}.lora_{end}.weight"].float() for end in ("up", "down"))
            expected = expected + 0.5 * torch.einsum("or,ri->oi", up, down).view(expected.shape)
        torch.testing.assert_close(weight, expected)
    apply_lora(model, file, -0.5)
    for name, weight in lora_names(model).items():
        torch.testing.assert_close(weight, before[name], atol=1e-5, rtol=1e-4)


def test_alpha_and_convolutions_as_other_trainers_write_them(tmp_path):
    """alpha / rank scales; a 3 x 3 convolution's down has the kernel, its up is 1 x 1."""
    conv = "lora_unet_mid_block_resnets_0_conv1"
    model, weight = tiny_model(), lora_names(tiny_model())[conv]
    down, up = torch.randn(2, *weight.shape[1:]), torch.randn(weight.shape[0], 2, 1, 1)
    tensors = {f"{conv}.lora_down.weight": down, f"{conv}.lora_up.weight": up, f"{conv}.alpha": torch.tensor(1.0)}
    save_file(tensors, tmp_path / "conv.safetensors")
    apply_lora(model, tmp_path / "conv.safetensors")
    expected = weight + 0.5 * torch.einsum("or,rihw->oihw", up[..., 0, 0], down)
    torch.testing.assert_close(lora_names(model)[conv], expected)


@pytest.mark.parametrize(
    "change, words",
    [
        ({f"{QUERY}.lora_up.weight": None}, "lacks its lora_up or lora_down"),
        ({f"{QUERY}.lora_up.weight": torch.zeros(5, 3)}, "5, 3.*trained on this model"),
        ({f"{QUERY}.lora_up.weight": torch.tensor(1.0)}, r"is \[\] by.*trained on this model"),
        ({f"{QUERY}.lora_down.weight": torch.zeros(3)}, r"by \[3\].*trained on this model"),
        ({f"{QUERY}.lora_up.weight": torch.zeros(32, 0), f"{QUERY}.lora_down.weight": torch.zeros(0, 32)}, "32, 0"),
        ({f"{QUERY}.alpha": torch.tensor(float("nan"))}, "NaN or infinite"),
        ({f"{QUERY}.alpha": torch.ones(2)}, r"alpha is \[2\], expected one number"),
        ({f"{QUERY}.alpha": torch.tensor(3e38), TEXT + ".alpha": torch.tensor(3e38)}, "too large at strength 5"),
        ({"lora_unet_input_blocks_1.lora_up.weight": torch.zeros(2, 2)}, "1 names.*input_blocks_1"),
        ({"unet.conv_in.weight": torch.zeros(2)}, "1 names.*unet.conv_in.weight"),
    ],
)
def test_files_that_do_not_fit_change_nothing(tmp_path, change, words):
    file = some_lora(tmp_path / "a.safetensors")
    tensors = {name: value for name, value in {**load_file(file), **change}.items() if value is not None}
    save_file(tensors, file)  # without the checksum, as another program would
    model, before = tiny_model(), lora_names(tiny_model())
    with pytest.raises(ContextDiffusionError, match=words):
        apply_lora(model, file, 5.0)
    assert all(torch.equal(weight, before[name]) for name, weight in lora_names(model).items())


def test_a_changed_number_is_seen(tmp_path):
    file = some_lora(tmp_path / "a.safetensors")
    content = bytearray(file.read_bytes())
    content[-100] ^= 1
    file.write_bytes(content)
    with pytest.raises(ContextDiffusionError, match="damaged"):
        apply_lora(tiny_model(), file)


def test_files_that_are_none(tmp_path):
    model = tiny_model()
    (tmp_path / "junk.safetensors").write_bytes(b"\x80\x02junk")
    save_file({}, tmp_path / "empty.safetensors")
    for name, words in (("absent", "does not exist"), ("junk", "junk.safetensors is"), ("empty", "no tensors")):
        with pytest.raises(ContextDiffusionError, match=words):
            apply_lora(model, tmp_path / f"{name}.safetensors")
