"""Checkpoints: what goes in comes out, and files are whole or absent."""

import errno
import json
import os
from pathlib import Path

import pytest
import torch

from context_diffusion.checkpoint.read import load_checkpoint, read_metadata
from context_diffusion.checkpoint.write import save_checkpoint
from context_diffusion.errors import ContextDiffusionError

from ..tiny import taesd_vae, tiny_model, tiny_unet
from .rewriting import read, refused, rewrite


def same_weights(left, right):
    mine, theirs = left.state_dict(), right.state_dict()
    return list(mine) == list(theirs) and all(torch.equal(mine[key], theirs[key]) for key in mine)


# What goes in comes out


def test_round_trip_is_exact(model, saved):
    again = load_checkpoint(saved)
    assert same_weights(model, again)
    assert (again.schedule, again.info) == (model.schedule, model.info)
    assert not again.training
    images, prompts = torch.rand(2, 3, 64, 64), ["a red flag", ""]
    z, timestep, query = torch.randn(2, 4, 8, 8), torch.tensor(300.0), torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        y = model.condition(model.encode_prompts(prompts), model.encode_context(images))
        assert torch.equal(again.condition(again.encode_prompts(prompts), again.encode_context(images)), y)
        assert torch.equal(again.predict(z, timestep, y, query), model.predict(z, timestep, y, query))
        assert torch.equal(again.decode_latents(z), model.decode_latents(z))


def test_keys_are_the_fields_own_names(saved):
    keys = set(read(saved)[0])
    assert {
        "unet.conv_in.weight",
        "layout_encoder.controlnet_mid_block.weight",
        "projector.linear.weight",
        "vae.decoder.conv_out.bias",
        "text_encoder.text_model.embeddings.token_embedding.weight",
        "image_encoder.vision_model.embeddings.class_embedding",
    } <= keys
    assert not any(key.endswith("position_ids") for key in keys)


def test_weights_of_clip_load_in_the_naming_of_either_transformers_release(model):
    from context_diffusion.checkpoint.parts import file_key

    # transformers 5, and 4, name the same weight so:
    for own in ("encoder.layers.0.mlp.fc1.weight", "text_model.encoder.layers.0.mlp.fc1.weight"):
        assert file_key("text_encoder", own) == "text_encoder.text_model.encoder.layers.0.mlp.fc1.weight"
    assert file_key("image_encoder", "post_layernorm.bias") == "image_encoder.vision_model.post_layernorm.bias"
    assert file_key("unet", "conv_in.bias") == "unet.conv_in.bias"


def test_file_is_plain_safetensors_with_modelspec(model, saved):
    tensors, metadata = read(saved)
    assert torch.equal(tensors["unet.conv_in.weight"], model.unet.conv_in.weight)
    assert metadata["modelspec.title"] == "tiny"
    assert metadata["modelspec.license"] == "CC0-1.0"
    assert metadata["modelspec.resolution"] == "64x64"
    assert metadata["modelspec.sai_model_spec"] == "1.0.0"
    assert metadata["modelspec.prediction_type"] == "flow"
    config = json.loads(metadata["context_diffusion.config"])
    assert config["format_version"] == 1
    assert config["unet"]["block_out_channels"] == [32, 64]
    assert config["projector"] == {"vision_width": 48, "text_width": 32}
    assert "/" not in json.dumps({name: config[name] for name in ("unet", "vae", "text_encoder")})  # no paths


def test_parts_may_be_absent(tmp_path):
    model = tiny_model()
    for part in ("layout_encoder", "vae", "text_encoder", "tokenizer", "image_encoder"):
        setattr(model, part, None)
    again = load_checkpoint(save_checkpoint(model, tmp_path / "unet-only.safetensors"))
    assert same_weights(model, again)
    assert again.vae is None and again.tokenizer is None


@torch.no_grad()
def test_a_tiny_vae_comes_back_as_one(tmp_path, caplog):
    model = tiny_model()
    model.vae = taesd_vae().eval()
    file = save_checkpoint(model, tmp_path / "tiny-vae.safetensors")
    assert not caplog.records  # within the native limits
    again = load_checkpoint(file)
    assert type(again.vae) is type(model.vae) and again.vae.config.scaling_factor == 0.7
    images, z = torch.rand(1, 3, 64, 64), torch.randn(1, 4, 8, 8)
    assert torch.equal(again.encode_images(images), model.encode_images(images))
    assert torch.equal(again.decode_latents(z), model.decode_latents(z))
    tensors, config = read(file)[0], read_metadata(file)["config"]["vae"]
    assert config["class"] == "AutoencoderTiny" and config["num_decoder_blocks"] == [2, 2, 1, 1]
    assert torch.equal(tensors["vae.encoder.layers.0.weight"], model.vae.encoder.layers[0].weight)

    rewrite(file, config=lambda c: c["vae"].update(num_encoder_blocks=[1, 1, 2, 2]))
    refused(file, r"does not hold the tensors its config asks for: .* missing \(vae.encoder.layers")


def test_the_class_of_the_vae(file):
    assert read_metadata(file)["config"]["vae"]["class"] == "AutoencoderKL"
    rewrite(file, config=lambda c: c["vae"].pop("class"))  # as in files before there was a choice
    assert type(load_checkpoint(file).vae).__name__ == "AutoencoderKL"
    tiny = {"class": "AutoencoderTiny", "decoder_block_out_channels": [64] * 4}
    rewrite(file, config=lambda c: c.update(vae=tiny))
    refused(file, "the vae config lacks in_channels, and its tensors show 0")


def test_dtypes(model, saved, tmp_path):
    half = save_checkpoint(model, tmp_path / "half.safetensors", dtype=torch.float16)
    assert half.stat().st_size < 0.6 * saved.stat().st_size
    kept = load_checkpoint(half)
    assert {p.dtype for p in kept.parameters()} == {torch.float16}
    assert torch.equal(kept.unet.conv_in.weight, model.unet.conv_in.weight.half())
    full = load_checkpoint(half, dtype=torch.float32)
    assert {p.dtype for p in full.parameters()} == {torch.float32}
    assert {p.dtype for p in model.parameters()} == {torch.float32}  # saving leaves the model alone


def test_tied_and_strided_weights(tmp_path):
    model = tiny_model()
    linear = model.projector.linear
    linear.weight = torch.nn.Parameter(torch.randn(48, 32).t())
    norm = model.unet.mid_block.resnets[0].norm1
    norm.weight = norm.bias
    again = load_checkpoint(save_checkpoint(model, tmp_path / "tied.safetensors"))
    assert same_weights(model, again)


def test_loaded_model_does_not_hang_on_the_file(file):
    loaded = load_checkpoint(file)
    before = loaded.unet.conv_in.weight.clone()
    file.write_bytes(b"\xff" * file.stat().st_size)
    assert torch.equal(loaded.unet.conv_in.weight, before)


def test_loading_leaves_the_random_numbers_alone(saved):
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    load_checkpoint(saved)
    assert torch.equal(torch.rand(1), expected)


def test_read_metadata(model, saved):
    found = read_metadata(saved)
    assert found["parameters"] == sum(p.numel() for p in model.parameters())
    assert found["parts"]["vae"] == {
        "parameters": sum(p.numel() for p in model.vae.parameters()),
        "dtypes": ["float32"],
    }
    assert list(found["parts"]) == list(found["config"])
    assert (found["format_version"], found["tokens"]) == (1, 540)
    assert found["modelspec"]["title"] == "tiny"
    assert found["schedule"] == model.schedule and found["info"] == model.info
    assert found["size"] == saved.stat().st_size


# Whole or not at all


def half_then(error):
    def write(tensors, path, metadata=None):
        Path(path).write_bytes(b"\x00" * 1000)
        raise error

    return write


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_failure_in_the_middle_leaves_the_old_file(model, file, monkeypatch, error):
    before = file.read_bytes()
    monkeypatch.setattr("safetensors.torch.save_file", half_then(error))
    kind = ContextDiffusionError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(kind) as caught:
        save_checkpoint(model, file)
    if isinstance(error, OSError):
        assert "the disk is full" in str(caught.value) and "tiny.safetensors" in str(caught.value)
    assert file.read_bytes() == before
    assert os.listdir(file.parent) == [file.name]


def test_a_failure_at_the_rename_leaves_the_old_file(model, file, monkeypatch):
    before = file.read_bytes()

    def fail(*names):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(ContextDiffusionError, match="cannot write .* the folder is not writable"):
        save_checkpoint(model, file)
    assert file.read_bytes() == before
    assert os.listdir(file.parent) == [file.name]


def test_saving_over_a_file_replaces_it(file):
    other = tiny_model(seed=1)
    save_checkpoint(other, file)
    assert same_weights(load_checkpoint(file), other)
    assert os.listdir(file.parent) == [file.name]


@pytest.mark.skipif(os.name == "nt", reason="POSIX modes and links")
def test_mode_and_links_are_kept(model, tmp_path):
    real, link = tmp_path / "real.safetensors", tmp_path / "link.safetensors"
    plain = tmp_path / "plain"
    plain.touch()
    save_checkpoint(model, real)
    assert real.stat().st_mode == plain.stat().st_mode
    real.chmod(0o640)
    link.symlink_to(real)
    save_checkpoint(model, link)
    assert link.is_symlink() and real.stat().st_mode & 0o777 == 0o640


def test_missing_folders_are_made(model, tmp_path):
    assert save_checkpoint(model, tmp_path / "a" / "b" / "x.safetensors").is_file()


def test_a_file_where_the_folder_should_be(model, tmp_path):
    (tmp_path / "a").write_text("")
    with pytest.raises(ContextDiffusionError, match="cannot write .* is a file and not a folder"):
        save_checkpoint(model, tmp_path / "a" / "x.safetensors")


def test_what_is_not_saved(tmp_path):
    model, path = tiny_model(), tmp_path / "x.safetensors"
    with pytest.raises(ContextDiffusionError, match="x.ckpt does not end in .safetensors"):
        save_checkpoint(model, tmp_path / "x.ckpt")
    (tmp_path / "folder.safetensors").mkdir()
    with pytest.raises(ContextDiffusionError, match="is a folder"):
        save_checkpoint(model, tmp_path / "folder.safetensors")
    model.unet.conv_in.bias[0] = 1e6  # finite in float32, not in float16
    with pytest.raises(ContextDiffusionError, match="unet.conv_in.bias is not finite in torch.float16"):
        save_checkpoint(model, path, dtype=torch.float16)
    model.info["thumbnail"] = "x" * 2**23
    with pytest.raises(ContextDiffusionError, match="not saved: its info is too long"):
        save_checkpoint(model, path)
    model.info["when"] = object()
    with pytest.raises(ContextDiffusionError, match="info or schedule does not go into JSON"):
        save_checkpoint(model, path)
    assert not path.exists()


def test_parts_that_do_not_fit_are_not_saved(tmp_path):
    model = tiny_model()
    model.unet = tiny_unet(in_channels=8)
    with pytest.raises(ContextDiffusionError, match="not saved: the UNet's in_channels is 8 and the layout enc"):
        save_checkpoint(model, tmp_path / "x.safetensors")
