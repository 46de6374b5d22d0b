"""Files that killed, blocked or misled earlier readers: cut while read, huge claims, foreign dtypes, changed bits."""

from __future__ import annotations

import json
import os
import struct
import time

import pytest
import torch
from safetensors.torch import load_file, save_file

from context_diffusion.checkpoint.header import open_tensors
from context_diffusion.checkpoint.read import load_checkpoint, read_metadata
from context_diffusion.checkpoint.stored import read_stored
from context_diffusion.checkpoint.style import load_style, save_style
from context_diffusion.errors import ContextDiffusionError

from .rewriting import read, refused, rewrite

READERS = (load_checkpoint, read_metadata, read_stored)
# Read by whoever asks for the names and the shapes, and by every reader of weights.
STYLE_INFO = {"context_diffusion.visual_context": '{"format_version": 1}'}


def all_refuse(file, message):
    for reader in READERS:
        with pytest.raises(ContextDiffusionError, match=message) as caught:
            reader(file)
        assert file.name in str(caught.value)


def header_of(content):
    length = struct.unpack("<Q", content[:8])[0]
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def with_header(header, data):
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def test_a_file_that_is_cut_short_while_it_is_read(file):
    """Where it is mapped into memory, this ends the process (SIGBUS)."""
    with open_tensors(file) as opened:
        os.truncate(file, file.stat().st_size // 2)
        with pytest.raises(ContextDiffusionError, match="was cut short while it was read"):
            for part in ("unet", "vae", "layout_encoder", "projector"):
                list(opened.read(part))


def test_a_file_that_is_written_to_while_it_is_read(file):
    rewrite(file)  # without a checksum
    with open_tensors(file) as opened, pytest.raises(ContextDiffusionError, match="written to while it was read"):
        for number, _ in enumerate(opened.read("unet")):
            if number == 0:
                file.open("ab").write(b"more")


@pytest.mark.parametrize(
    ("part", "entry", "value"),
    [
        ("text_encoder", "num_hidden_layers", 100_000),
        ("image_encoder", "num_hidden_layers", 100_000),
        ("text_encoder", "intermediate_size", 10**9),
        ("image_encoder", "image_size", 10**6),
        ("unet", "layers_per_block", 100_000),
        ("unet", "transformer_layers_per_block", 100_000),
        ("unet", "reverse_transformer_layers_per_block", [[100_000]]),
        ("unet", "block_out_channels", [32] * 100_000),
        ("unet", "cross_attention_dim", 10**9),
        ("unet", "in_channels", 4.0),
        ("unet", "sample_size", 10**6),
        ("layout_encoder", "layers_per_block", 100_000),
        ("layout_encoder", "conditioning_embedding_out_channels", [16] * 100_000),
        ("projector", "vision_width", 10**9),
        ("vae", "layers_per_block", 100_000),
        ("vae", "latent_channels", 10**9),
        ("vae", "scaling_factor", "one"),
    ],
)
def test_counts_and_widths_are_compared_before_anything_is_built(file, part, entry, value):
    rewrite(file, config=lambda c: c[part].update({entry: value}))
    start = time.process_time()
    all_refuse(file, f"the {part} config has {entry}")
    assert time.process_time() - start < 30  # building them takes minutes, or all memory


@pytest.mark.parametrize(
    ("entry", "value"),
    [
        ("num_train_timesteps", 10**9),
        ("num_train_timesteps", True),
        ("beta_start", "0.1"),
        ("beta_end", 1e30),
        ("beta_schedule", 7),
        ("rescale_betas_zero_snr", None),
    ],
)
def test_a_schedule_that_none_has(file, entry, value):
    rewrite(file, config=lambda c: c["schedule"].update({entry: value}))
    all_refuse(file, entry)


@pytest.mark.parametrize("value", ["1e999", "NaN", "9" * 5000, "[" * 1000 + "]" * 1000, '"\\ud800"'])
@pytest.mark.parametrize("key", ["context_diffusion.config", "context_diffusion.tokenizer"])
def test_json_that_no_reader_takes(file, key, value):
    rewrite(file, metadata=lambda m: m.update({key: m[key].replace("{", f'{{"more": {value}, ', 1)}))
    all_refuse(file, "cannot be read.*not JSON")


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8, torch.int64, torch.bool, torch.float64])
def test_dtypes_that_no_weight_has(file, tmp_path, dtype):
    rewrite(file, tensors=lambda t: t.update({"unet.conv_in.bias": t["unet.conv_in.bias"].to(dtype)}))
    all_refuse(file, "^[^:]+: unet.conv_in.bias has dtype '[A-Z0-9_]+': save it with F32, F16, BF16$")
    style = tmp_path / "style.safetensors"
    save_file({"last_hidden_state": torch.zeros(1, 5, 8).to(dtype)}, style, STYLE_INFO)
    with pytest.raises(ContextDiffusionError, match="last_hidden_state has dtype"):
        load_style(style)


def test_a_header_that_is_too_large_is_not_parsed(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", 17 * 2**20) + b"{" + b" " * (17 * 2**20))
    all_refuse(path, "header of 17825792 bytes, more than 16777216")


def change_places(entry):
    entry["data_offsets"] = [offset + 4 for offset in entry["data_offsets"]]


@pytest.mark.parametrize(
    "change",
    [
        change_places,
        lambda entry: entry.update(shape=[2**40]),
        lambda entry: entry.update(shape=[1] * 9),
        lambda entry: entry.update(shape=[-1]),
        lambda entry: entry.update(shape=[True]),
        lambda entry: entry.update(shape="32"),
        lambda entry: entry.update(dtype=3),
        lambda entry: entry.update(dtype="F16"),
        lambda entry: entry.update(data_offsets=[0]),
    ],
)
def test_a_header_that_does_not_fit_its_data(file, change):
    header, data = header_of(file.read_bytes())
    change(header["unet.conv_in.bias"])
    file.write_bytes(with_header(header, data))
    all_refuse(file, "header cannot be read|a place that does not fit it|truncated")


def test_names_in_messages_can_be_shown(file):
    name = "unet.\x1b[2J\n" + "x" * 5000
    rewrite(file, tensors=lambda t: t.update({name: torch.zeros(1)}))
    with pytest.raises(ContextDiffusionError) as caught:
        load_checkpoint(file)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 1100


@pytest.mark.skipif(os.name == "nt", reason="POSIX pipes")
def test_a_named_pipe_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.safetensors")
    all_refuse(tmp_path / "pipe.safetensors", "is a named pipe: give a .safetensors file")


# Checksums


def flip(content, position, bit=0):
    return content[:position] + bytes([content[position] ^ 1 << bit]) + content[position + 1 :]


def test_a_changed_bit_of_a_weight_is_found(file):
    content = file.read_bytes()
    header, data = header_of(content)
    start = len(content) - len(data)
    for name in ("unet.conv_in.bias", "text_encoder.text_model.final_layer_norm.weight"):
        file.write_bytes(flip(content, start + header[name]["data_offsets"][0]))
        for reader in (load_checkpoint, read_stored):
            with pytest.raises(ContextDiffusionError, match=f"its {name.partition('.')[0]} is not what was saved"):
                reader(file)
        read_metadata(file)  # reads no tensor
    read_stored(file, ("unet",))  # of another part


def test_a_changed_number_of_the_config_is_found(file):
    tensors, metadata = read(file)
    changed = metadata["context_diffusion.config"].replace('"scaling_factor": 0.18215', '"scaling_factor": 0.18216')
    assert changed != metadata["context_diffusion.config"]
    save_file(tensors, file, metadata | {"context_diffusion.config": changed})
    all_refuse(file, "its description is not what was saved.*context_diffusion.crc32 out of its metadata")
    # The title is for anybody to change.
    save_file(tensors, file, metadata | {"modelspec.title": "another"})
    assert read_metadata(file)["modelspec"]["title"] == "another"
    load_checkpoint(file)


def test_weights_under_one_anothers_name_are_found(file):
    tensors, metadata = read(file)
    left, right = "unet.down_blocks.0.resnets.0.norm1.weight", "unet.conv_in.bias"
    tensors[left], tensors[right] = tensors[right], tensors[left]
    save_file(tensors, file, metadata)
    refused(file, "its unet is not what was saved")


def test_another_name_dtype_or_shape_is_found_before_a_tensor_is_read(file):
    content = file.read_bytes()
    header, data = header_of(content)
    name = "unet.conv_in.weight"
    for change in ({"dtype": "I32"}, {"shape": header[name]["shape"][::-1]}, None):
        changed = {key: dict(entry) for key, entry in header.items()}
        if change is None:
            changed["unet.conv_in.weights"] = changed.pop(name)
        else:
            changed[name].update(change)
        file.write_bytes(with_header(changed, data))
        all_refuse(file, "its description is not what was saved")


def test_files_without_a_checksum_are_read(file):
    whole = load_checkpoint(file)
    rewrite(file)
    assert "context_diffusion.crc32" not in read(file)[1]
    assert all(torch.equal(a, b) for a, b in zip(load_checkpoint(file).parameters(), whole.parameters(), strict=True))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"": "x"}', '{"": 3}'])
def test_a_checksum_that_is_none(file, text):
    tensors, metadata = read(file)
    save_file(tensors, file, metadata | {"context_diffusion.crc32": text})
    all_refuse(file, "is damaged")


# Styles


def test_a_style_gives_its_known_features_alone(tmp_path):
    path = tmp_path / "style.safetensors"
    tensors = {"last_hidden_state": torch.ones(1, 5, 8), "strange": torch.full((3,), float("nan"))}
    save_file(tensors, path, STYLE_INFO)
    assert list(load_style(path)[0]) == ["last_hidden_state"]
    with pytest.raises(ContextDiffusionError, match="holds strange of"):
        save_style(tmp_path / "new", {"last_hidden_state": tensors["last_hidden_state"], "strange": torch.ones(3)}, {})


def test_a_style_has_a_largest_size(tmp_path):
    path = tmp_path / "style.safetensors"
    save_file({"last_hidden_state": torch.ones(1, 5, 8)}, path, STYLE_INFO)
    header, data = header_of(path.read_bytes())
    header["padding"] = {"dtype": "U8", "shape": [2**29], "data_offsets": [len(data), len(data) + 2**29]}
    path.write_bytes(with_header(header, data))
    os.truncate(path, path.stat().st_size + 2**29)  # sparse
    with pytest.raises(ContextDiffusionError, match="more than a style's"):
        load_style(path)


@pytest.mark.parametrize(
    ("entry", "value"),
    [("images", "3"), ("aggregation", 1), ("encoder", []), ("image_sizes", 3), ("image_sizes", [["x"]])],
)
def test_what_a_style_says_of_itself_is_checked(tmp_path, entry, value):
    info = {"context_diffusion.visual_context": json.dumps({"format_version": 1, entry: value})}
    save_file({"last_hidden_state": torch.ones(1, 5, 8)}, tmp_path / "x.safetensors", info)
    with pytest.raises(ContextDiffusionError, match=f"its {entry} is"):
        load_style(tmp_path / "x.safetensors")


def test_a_style_of_an_earlier_release_is_the_same_style(tmp_path):
    path = tmp_path / "style.safetensors"
    tensors = {"last_hidden_state": torch.ones(1, 5, 8)}
    save_style(path, tensors, {"images": 1})
    metadata = read(path)[1]
    assert metadata.pop("context_diffusion.crc32")
    save_file(load_file(path), path, metadata)
    assert not save_style(path, tensors, {"images": 1})
