"""Stage `vae`: going on from an earlier autoencoder, with its decoder alone."""

import json
import logging

import pytest
import torch
from safetensors.torch import load_file

from context_diffusion.errors import ContextDiffusionError
from context_diffusion.features.networks import SqueezeNetFeatures
from context_diffusion.training.begin.vae import load_vae, new_vae, with_blocks
from context_diffusion.training.run.loop import train
from context_diffusion.training.settings import VAESettings, VAEWeights
from context_diffusion.training.stages.vae import SMALLEST_CROP, VAEObjective, VAEStage, flat_areas

from ..tiny_data import vae_config, write_tiny_data

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


def test_more_blocks_begin_as_the_same_autoencoder():
    torch.manual_seed(0)
    vae = new_vae(4, (1, 1, 1, 2), (2, 1, 1, 1))
    grown = with_blocks(vae, (1, 2, 1, 3), (3, 1, 2, 1))
    assert list(grown.config.num_encoder_blocks) == [1, 2, 1, 3]
    assert list(grown.config.num_decoder_blocks) == [3, 1, 2, 1]
    assert count(grown) - count(vae) == 4 * count(vae.encoder.layers[1])
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        latents = vae.encode(images).latents
        assert torch.equal(grown.encode(images).latents, latents)
        assert torch.equal(grown.decode(latents).sample, vae.decode(latents).sample)
    # The new blocks can learn: a gradient reaches the layer that is zero.
    grown.decode(latents).sample.square().sum().backward()
    silent = [name for name, value in grown.decoder.named_parameters() if not value.grad.any()]
    new = [name for name in silent if ".conv.0." in name or ".conv.2." in name]
    assert silent == new and len(new) == 2 * 4


def count(module):
    return sum(value.numel() for value in module.parameters())


@pytest.mark.parametrize("blocks", [(1, 1, 1, 1), (2, 1, 1), (2, 1, 1, 1, 1)])
def test_blocks_are_not_taken_away(blocks):
    with pytest.raises(ContextDiffusionError, match=r"decoder_blocks is .* has \[2, 1, 1, 1\].*not taken away"):
        with_blocks(new_vae(4, (1, 1, 1, 1), (2, 1, 1, 1)), (1, 1, 1, 1), blocks)


def test_training_goes_on_with_more_blocks(data, tmp_path):
    first = run(vae_config(data, tmp_path / "first", steps=2))
    config = vae_config(data, tmp_path / "second", steps=2)
    blocks = [*config.settings["decoder_blocks"][:2], config.settings["decoder_blocks"][2] + 1, 1]
    config.settings |= {"start_from": str(tmp_path / "first"), "train_encoder": False, "decoder_blocks": blocks}
    second = run(config)
    assert len(second) == len(first) + 6
    assert list(load_vae(tmp_path / "second").config.num_decoder_blocks) == blocks


def test_flat_areas_keep_away_from_edges():
    images = torch.full((1, 3, 12, 12), 0.5)
    images[:, 1, :, 6:] = 0.6
    flat = flat_areas(images, size=5)
    assert flat.shape == (1, 1, 12, 12)
    assert flat[0, 0].all(dim=0).tolist() == [True] * 4 + [False] * 4 + [True] * 4
    assert flat_areas(images, tolerance=0.2).all()


def test_flat_weighs_errors_in_fills_alone():
    """The loss with the term less the loss without: the summed error inside of fills, for each value of the images."""
    torch.manual_seed(0)
    vae, images = new_vae(4, (1, 1, 1, 1), (1, 1, 1, 1)), torch.full((2, 3, 16, 16), 0.25)
    images[1] = torch.rand(3, 16, 16)
    batch = {"images": images, "noise": torch.zeros(2, 4, 2, 2), "noise_level": torch.zeros(2, 1, 1, 1)}
    with torch.no_grad():
        plain, weighted = (
            VAEObjective(vae, None, VAESettings(weights=VAEWeights(flat=flat)))(batch)[0].double()
            for flat in (0.0, 2.0)
        )
        error = (vae.decode(vae.encode(images * 2 - 1).latents).sample / 2 + 0.5 - images).abs()
    torch.testing.assert_close(weighted - plain, 2 * error[0].double().sum() / images.numel(), rtol=1e-4, atol=1e-6)


def _no_vae(folder):
    pass


def _another_kind(folder):
    from diffusers import AutoencoderKL

    AutoencoderKL(block_out_channels=(32,)).save_pretrained(folder / "vae")


def _broken_config(folder):
    new_vae(4, (1, 1, 1, 1), (1, 1, 1, 1)).save_pretrained(folder / "vae")
    (folder / "vae" / "config.json").write_text("{")


def _cut_weights(folder):
    new_vae(4, (1, 1, 1, 1), (1, 1, 1, 1)).save_pretrained(folder / "vae")
    weights = folder / "vae" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-50])


def _other_weights(folder):
    new_vae(4, (1, 1, 1, 1), (1, 1, 1, 1)).save_pretrained(folder / "vae")
    config = json.loads((folder / "vae" / "config.json").read_text())
    (folder / "vae" / "config.json").write_text(json.dumps({**config, "latent_channels": 8}))


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (_no_vae, ["no vae/ folder", "run that stage first"]),
        (_another_kind, ["AutoencoderKL", "AutoencoderTiny"]),
        (_broken_config, ["damaged"]),
        (_cut_weights, ["damaged"]),
        (_other_weights, ["damaged"]),
    ],
)
def test_a_folder_that_is_no_run_of_the_stage(tmp_path, write, words):
    write(tmp_path)
    with pytest.raises(ContextDiffusionError) as caught:
        load_vae(tmp_path)
    message = str(caught.value)
    assert "\n" not in message and str(tmp_path) in message and all(word in message for word in words)


def test_a_crop_that_the_features_cannot_take(data, tmp_path):
    config = vae_config(data, tmp_path)
    config.settings.update(crop=16, feature_weights="any.safetensors")
    with pytest.raises(ContextDiffusionError, match="crop is 16.*24"):
        VAEStage(config)
    # At that size they are taken: the bound is not a guess.
    images = torch.rand(1, 3, SMALLEST_CROP, SMALLEST_CROP)
    assert SqueezeNetFeatures().distance(images, 1 - images).isfinite().all()
