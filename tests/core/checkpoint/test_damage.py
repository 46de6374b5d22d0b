"""Bad checkpoint files: each is named, and nothing in it is run."""

import pickle
import re
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from context_diffusion.checkpoint.parts import PARTS
from context_diffusion.checkpoint.read import load_checkpoint, read_metadata
from context_diffusion.cli import main
from context_diffusion.errors import ContextDiffusionError

from .rewriting import refused, rewrite


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
    refused(file, f"format version {version!r}")


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
    refused(file, r"holds vae\.\S+, of a part that its config does not know")


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
            "vae config has in_channels 3, and its tensors show 0",
        ),
        (lambda c: c["unet"].update({"class": "UNet2DModel"}), "the unet config is of class 'UNet2DModel', not UNet2D"),
        (
            lambda c: c["text_encoder"].update(num_attention_heads=5),
            "text_encoder config has num_attention_heads 5, and its tensors show .widths of .32.",
        ),
        (lambda c: c["projector"].pop("text_width"), "the projector config lacks text_width"),
        (lambda c: c.update(image_encoder=[1]), "the image_encoder config is"),
        (lambda c: c.update(schedule=[1]), "schedule is not a table"),
        (lambda c: c["schedule"].update(prediction_type="x0"), "prediction_type is 'x0'"),
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
        (
            lambda c: c["vae"].update({"class": "AutoencoderTiny"}),
            "the vae config has in_channels 3, and its tensors show 0",
        ),
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
    refused(file, "vocab_size 1000000000000, and its tensors show 540")


def test_metadata_that_is_not_json(file):
    rewrite(file, metadata=lambda m: m.update({"context_diffusion.config": "{"}))
    refused(file, "config that cannot be read .it is not JSON")


def test_damaged_tokenizer(file):
    rewrite(file, metadata=lambda m: m.update({"context_diffusion.tokenizer": '{"tokens": []}'}))
    refused(file, "tokenizer's JSON needs")
    rewrite(file, metadata=lambda m: m.update({"context_diffusion.tokenizer": "{"}))
    with pytest.raises(ContextDiffusionError, match="tokenizer cannot be read"):
        read_metadata(file)
