"""Stage `vae`: going on from an earlier autoencoder, with its decoder alone."""

import logging

import pytest
import torch
from safetensors.torch import load_file

from context_diffusion.training.loop import train
from context_diffusion.training.vae import VAEStage, load_vae

from .tiny_data import vae_config, write_tiny_data

WEIGHTS = "vae/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_tiny_data(tmp_path_factory.mktemp("data"))


def run(config):
    train(config, VAEStage(config))
    return load_file(f"{config.out}/{WEIGHTS}")


def test_the_decoder_alone_leaves_the_latents(data, tmp_path):
    first = run(vae_config(data, tmp_path / "first", steps=2))
    config = vae_config(data, tmp_path / "second", steps=2)
    config.settings |= {"start_from": str(tmp_path / "first"), "train_encoder": False}
    second = run(config)
    changed = {name for name in first if not torch.equal(first[name], second[name])}
    assert changed and all(name.startswith("decoder.") for name in changed)
    one, two = load_vae(tmp_path / "first"), load_vae(tmp_path / "second")
    assert one.config.scaling_factor == two.config.scaling_factor


def test_a_shape_that_comfyui_lacks_is_said_before_training(data, tmp_path, caplog):
    config = vae_config(data, tmp_path, steps=1)
    config.settings["decoder_blocks"] = [4, 1, 1, 1]
    with caplog.at_level(logging.WARNING):
        VAEStage(config)
    assert "will not load in ComfyUI" in caplog.text and "[4, 1, 1, 1]" in caplog.text
