"""Checkpoints: what goes in comes out, files are whole or absent, and every bad file is named."""

import errno
import json
import os
import pickle
import re
import struct
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from context_diffusion.checkpoint import load_checkpoint, read_metadata, save_checkpoint
from context_diffusion.cli import main
from context_diffusion.errors import ContextDiffusionError
from context_diffusion.parts import PARTS

from .tiny import taesd_vae, tiny_model, tiny_unet


@pytest.fixture(scope="module")
def model():
    return tiny_model(prediction_type="flow")


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory):
    return save_checkpoint(model, tmp_path_factory.mktemp("saved") / "tiny.safetensors")


@pytest.fixture
def file(saved, tmp_path):
    """A copy that a test may damage."""
    copy = tmp_path / "tiny.safetensors"
    copy.write_bytes(saved.read_bytes())
    return copy


def read(file):
    with safe_open(file, framework="pt") as opened:
        return load_file(file), opened.metadata()


def rewrite(file, tensors=None, metadata=None, config=None):
    """Change a file's contents with the safetensors library alone."""
    old_tensors, old_metadata = read(file)
    if config is not None:
        settings = json.loads(old_metadata["context_diffusion.config"])
        config(settings)
        old_metadata["context_diffusion.config"] = json.dumps(settings)
    for change, old in ((tensors, old_tensors), (metadata, old_metadata)):
        if change is not None:
            change(old)
    save_file(old_tensors, file, metadata=old_metadata)


def same_weights(left, right):
    mine, theirs = left.state_dict(), right.state_dict()
    return list(mine) == list(theirs) and all(torch.equal(mine[key], theirs[key]) for key in mine)


def refused(file, message):
    with pytest.raises(ContextDiffusionError, match=message) as caught:
        load_checkpoint(file)
    assert file.name in str(caught.value) and "\n" not in str(caught.value)


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
    from context_diffusion.parts import file_key

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
    refused(file, "does not hold the tensors its config asks for")


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
        assert "No space left" in str(caught.value) and "tiny.safetensors" in str(caught.value)
    assert file.read_bytes() == before
    assert os.listdir(file.parent) == [file.name]


def test_a_failure_at_the_rename_leaves_the_old_file(model, file, monkeypatch):
    before = file.read_bytes()

    def fail(*names):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(ContextDiffusionError, match="cannot be written: Permission denied"):
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
    with pytest.raises(ContextDiffusionError, match="cannot be written"):
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
    model.info["when"] = object()
    with pytest.raises(ContextDiffusionError, match="info or schedule does not go into JSON"):
        save_checkpoint(model, path)
    assert not path.exists()


def test_parts_that_do_not_fit_are_not_saved(tmp_path):
    model = tiny_model()
    model.unet = tiny_unet(in_channels=8)
    with pytest.raises(ContextDiffusionError, match="not saved: the UNet's in_channels is 8 and the layout enc"):
        save_checkpoint(model, tmp_path / "x.safetensors")


# Bad files


def test_missing_folder_and_empty(tmp_path):
    refused(tmp_path / "none.safetensors", "does not exist")
    refused(tmp_path, "is a folder")
    (tmp_path / "empty.safetensors").touch()
    refused(tmp_path / "empty.safetensors", r"is empty \(0 bytes\)")


@pytest.mark.parametrize("left", [5, 8, 100, 5000, 1_000_000, -1])
def test_truncated(file, left):
    file.write_bytes(file.read_bytes()[:left])
    refused(file, "truncated|not a .safetensors file" if left == 5 else "truncated")
    with pytest.raises(ContextDiffusionError):
        read_metadata(file)


def test_bytes_after_the_end(file):
    file.write_bytes(file.read_bytes() + b"more")
    refused(file, "where its header says")


class Trap:
    """Unpickled, it leaves a trace."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("name", ["model.pt", "model.safetensors"])
@pytest.mark.parametrize("kind", ["zip", "protocol2", "protocol4"])
def test_pickles_are_refused_by_content_and_never_opened(tmp_path, name, kind):
    file, trace = tmp_path / name, tmp_path / "trace"
    if kind == "zip":
        torch.save({"x": Trap(trace)}, file)
    else:
        file.write_bytes(pickle.dumps(Trap(trace), protocol=int(kind[-1])))
    refused(file, "pickle")
    assert not trace.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "git lfs pull"),
        (b"<!DOCTYPE html><html>Sign in</html>", "web page"),
        (b"GGUF" + bytes(100), "GGUF"),
        (b"just a text file, long enough to have a header", "not a .safetensors file"),
        (struct.pack("<Q", 12) + b"{not json!!}", "header cannot be read"),
        (struct.pack("<Q", 9) + b"[1, 2, 3]", "header cannot be read"),
    ],
)
def test_other_formats(tmp_path, content, message):
    file = tmp_path / "x.safetensors"
    file.write_bytes(content)
    refused(file, message)


def test_safetensors_of_another_origin(tmp_path):
    file = tmp_path / "sd.safetensors"
    save_file({"model.diffusion_model.out.weight": torch.zeros(2)}, file)
    refused(file, "another origin .*model.diffusion_model.out.weight.*from_stable_diffusion")
    with pytest.raises(ContextDiffusionError, match="another origin"):
        read_metadata(file)


@pytest.mark.parametrize("version", [2, 0, None, "1"])
def test_unknown_version(file, version):
    rewrite(file, config=lambda c: c.update(format_version=version))
    refused(file, f"format version {version}")


def test_keys_and_shapes(file):
    def damage(tensors):
        del tensors["unet.conv_in.bias"]
        tensors["unet.conv_in.lora"] = torch.zeros(2)
        tensors["vae.encoder.conv_in.bias"] = torch.zeros(7)

    rewrite(file, tensors=damage)
    refused(
        file,
        r"1 missing \(unet.conv_in.bias\), 1 that its config does not know \(unet.conv_in.lora\), "
        r"1 of a wrong shape \(vae.encoder.conv_in.bias is \[7\], not \[32\]\)",
    )


def test_a_part_without_config_is_extra(file):
    rewrite(file, config=lambda c: c.pop("vae"))
    refused(file, r"does not know \(vae\.")


def test_weights_that_are_not_finite(file):
    rewrite(file, tensors=lambda t: t["vae.encoder.conv_in.bias"].fill_(float("nan")))
    refused(file, "vae.encoder.conv_in.bias holds NaN")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("unet"), "no config of its unet"),
        (
            lambda c: c["unet"].update(down_block_types=["Nope", "Nope"]),
            "the unet config does not make a UNet2D",
        ),
        (lambda c: c["unet"].update(quantum=3), "the unet config has entries unknown here: quantum"),
        (lambda c: c["vae"].update(norm_num_groups=7), "the vae config does not make"),
        (lambda c: c["vae"].update({"class": "VQModel"}), "vae config is of class 'VQModel', not Auto"),
        (lambda c: c["vae"].update({"class": None}), "vae config is of class None, not Auto"),
        (
            lambda c: c["vae"].update({"class": "AutoencoderTiny", "decoder_block_out_channels": [32] * 4}),
            "vae config has entries unknown here",
        ),
        (lambda c: c["unet"].update({"class": "UNet2DModel"}), "entries unknown here: class"),
        (lambda c: c["text_encoder"].update(num_attention_heads=5), "the text_encoder config does not make"),
        (lambda c: c["projector"].pop("text_width"), "the projector config does not make"),
        (lambda c: c.update(image_encoder=[1]), "the image_encoder config is"),
        (lambda c: c.update(schedule=[1]), "schedule that is not a table"),
        (lambda c: c["schedule"].update(prediction_type="x0"), "prediction_type 'x0'"),
    ],
)
def test_wrong_config(file, change, message):
    rewrite(file, config=change)
    refused(file, message)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        *((lambda c, name=name: c.update({name: [1]}), rf"the {name} config is \[1\]") for name in PARTS),
        (lambda c: c.update(vae="AutoencoderKL"), "the vae config is 'AutoencoderKL'"),
        (lambda c: c["vae"].pop("block_out_channels"), "the vae config lacks block_out_channels"),
        (lambda c: c["vae"].update(block_out_channels=7), "the vae config has block_out_channels 7"),
        (lambda c: c["vae"].update(block_out_channels=[]), r"the vae config has block_out_channels \[\]"),
        (lambda c: c["vae"].update({"class": "AutoencoderTiny"}), "the vae config lacks decoder_block_out"),
        (lambda c: c["image_encoder"].pop("image_size"), "the image_encoder config lacks image_size"),
        (lambda c: c["image_encoder"].update(patch_size=0), "the image_encoder config has patch_size 0"),
        (lambda c: c["image_encoder"].update(image_size="32"), "the image_encoder config has image_size '32'"),
        (lambda c: c["unet"].update(sample_size="8"), "the unet config has sample_size '8'"),
        (lambda c: c["unet"].update(sample_size=[8]), r"the unet config has sample_size \[8\]"),
    ],
)
def test_wrong_config_is_refused_before_anything_is_built(file, change, message, capsys):
    """`info` and `generate` read sizes from the header alone."""
    rewrite(file, config=change)
    refused(file, message)
    for words in (["info", file], ["generate", "--model", file, "--prompt", "moon", "--out", file.parent / "x.png"]):
        assert main([str(word) for word in words]) == 2
        err = capsys.readouterr().err
        assert err.startswith("error: ") and err.count("\n") == 1 and file.name in err and re.search(message, err)


def test_switches_of_newer_libraries_that_are_off_are_no_error(file):
    rewrite(file, config=lambda c: c["unet"].update(a_new_switch=False, another=None))
    load_checkpoint(file)


def test_a_config_of_huge_sizes_takes_no_memory(file):
    rewrite(file, config=lambda c: c["text_encoder"].update(vocab_size=10**12))
    refused(file, "wrong shape .*token_embedding")


def test_metadata_that_is_not_json(file):
    rewrite(file, metadata=lambda m: m.update({"context_diffusion.config": "{"}))
    refused(file, "not JSON")


def test_damaged_tokenizer(file):
    rewrite(file, metadata=lambda m: m.update({"context_diffusion.tokenizer": '{"tokens": []}'}))
    refused(file, "tokenizer's JSON needs")
    rewrite(file, metadata=lambda m: m.update({"context_diffusion.tokenizer": "{"}))
    with pytest.raises(ContextDiffusionError, match="tokenizer that cannot be read"):
        read_metadata(file)
