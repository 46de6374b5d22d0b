"""What keeps a model from running as native ComfyUI objects is said when it is saved."""

import re

import pytest

from context_diffusion.checkpoint.native import check_native_limits
from context_diffusion.checkpoint.write import save_checkpoint

from ..tiny import taesd_vae, tiny_model


@pytest.fixture(scope="module")
def model():
    return tiny_model(prediction_type="flow")


def test_the_tiny_model_keeps_the_limits_and_saves_in_silence(model, tmp_path, caplog):
    assert check_native_limits(model) == []
    save_checkpoint(model, tmp_path / "x.safetensors")
    assert not caplog.records


@pytest.mark.parametrize(
    ("part", "settings", "message"),
    [
        ("unet", {"norm_num_groups": 16}, "norm_num_groups is 16, must be 32"),
        ("unet", {"flip_sin_to_cos": False}, "flip_sin_to_cos is False"),
        ("unet", {"freq_shift": 1}, "freq_shift is 1"),
        ("unet", {"act_fn": "gelu"}, "act_fn is 'gelu'"),
        ("unet", {"block_out_channels": (32, 48)}, "whole multiples"),
        ("unet", {"layers_per_block": (1, 2)}, "layers_per_block is"),
        ("unet", {"attention_head_dim": (4, 4)}, None),
        ("unet", {"attention_head_dim": (4, 8)}, None),  # 8 wide everywhere
        ("unet", {"attention_head_dim": (8, 4)}, "heads are"),
        ("unet", {"down_block_types": ("AttnDownBlock2D", "DownBlock2D")}, "down block AttnDownBlock2D"),
        ("unet", {"up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D")}, "must mirror"),
        (
            "layout_encoder",
            {"conditioning_embedding_out_channels": (16, 32, 64, 128)},
            "must be .16, 32, 96, 256.",
        ),
        ("vae", {"block_out_channels": (32, 32, 32)}, "3 levels, must be 4"),
        ("vae", {"norm_num_groups": 8}, "vae: norm_num_groups is 8"),
    ],
)
def test_each_limit_is_named(part, settings, message):
    model = tiny_model()
    getattr(model, part).register_to_config(**settings)
    limits = check_native_limits(model)
    if message is None:
        assert limits == []
    else:
        assert len(limits) == 1 and limits[0].startswith(f"{part}: ")
        assert re.search(message, limits[0])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, None),
        ({"num_encoder_blocks": (1, 3, 3, 3), "num_decoder_blocks": (3, 3, 3, 1)}, None),
        ({"num_encoder_blocks": (2, 1, 1, 1)}, "num_encoder_blocks are .2, 1, 1, 1."),
        ({"num_decoder_blocks": (1, 1, 4, 1)}, "num_decoder_blocks are .1, 1, 4, 1."),
        ({"num_decoder_blocks": (1, 0, 1, 1)}, "must be 1 or more"),
        ({"encoder_block_out_channels": (32,) * 4}, "encoder_block_out_channels are .32, 32, 32, 32."),
        (
            {"decoder_block_out_channels": (64,) * 3, "num_decoder_blocks": (1, 1, 1)},
            "must be .64, 64, 64, 64.",
        ),
        ({"act_fn": "silu"}, "act_fn is 'silu'"),
        ({"upsample_fn": "bilinear"}, "upsample_fn is 'bilinear'"),
        ({"latent_channels": 128}, "latent_channels is 128"),
    ],
)
def test_limits_of_a_tiny_vae(settings, message):
    model = tiny_model()
    model.vae = taesd_vae(**settings)
    limits = check_native_limits(model)
    if message is None:
        assert limits == []
    else:
        assert len(limits) == 1 and re.search(f"^vae: .*{message}", limits[0])


def test_limits_of_clip_schedule_and_tokenizer(tmp_path, caplog):
    model = tiny_model(beta_schedule="sigmoid")
    model.text_encoder.config.hidden_act = "relu"
    model.image_encoder.config.layer_norm_eps = 1e-6
    model.tokenizer.pad_token = "!"
    limits = " | ".join(check_native_limits(model))
    for words in (
        "beta_schedule is 'sigmoid'",
        "hidden_act is 'relu'",
        "layer_norm_eps is 1e-06",
        "pads with '!'",
    ):
        assert words in limits
    save_checkpoint(model, tmp_path / "x.safetensors")
    assert "will not load as native ComfyUI objects" in caplog.text and "sigmoid" in caplog.text
