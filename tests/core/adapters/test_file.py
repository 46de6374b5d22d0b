"""Adapter files read, written and converted."""

from __future__ import annotations

import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file

from context_diffusion import ContextDiffusionError
from context_diffusion.adapters.file import convert_pickle, read_adapter, read_kind, tensors_of, write_adapter
from context_diffusion.cli import main

from .tiny_adapters import tiny_file, tiny_unet


@pytest.fixture(scope="module")
def tensors():
    return tiny_file("plus", tiny_unet())


@pytest.fixture
def file(tensors, tmp_path):
    save_file(tensors, tmp_path / "adapter.safetensors")
    return tmp_path / "adapter.safetensors"


def nested(tensors):
    tables = {"image_proj": {}, "ip_adapter": {}}
    for name, tensor in tensors.items():
        table, _, rest = name.partition(".")
        tables[table][rest] = tensor
    return tables


def test_a_file_is_read_and_written_as_it_was(file, tensors, tmp_path):
    adapter = read_adapter(file)
    assert adapter.kind == read_kind(file)
    assert tensors_of(adapter).keys() == tensors.keys()
    write_adapter(adapter, tmp_path / "again.safetensors", torch.float32)
    again = load_file(tmp_path / "again.safetensors")
    assert again.keys() == tensors.keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in tensors.items())


def test_the_other_prefix_is_the_same_adapter(tensors, tmp_path):
    other = {name.replace("ip_adapter.", "adapter_modules."): tensor for name, tensor in tensors.items()}
    save_file(other, tmp_path / "other.safetensors")
    got = tensors_of(read_adapter(tmp_path / "other.safetensors"))
    assert all(torch.equal(got[name], tensor) for name, tensor in tensors.items())


def test_a_pickle_is_converted(tensors, tmp_path, capsys):
    torch.save(nested(tensors), tmp_path / "adapter.bin")
    out = tmp_path / "adapter.safetensors"
    assert main(["adapter", "convert", str(tmp_path / "adapter.bin"), "--out", str(out)]) == 0
    got = load_file(out)
    assert got.keys() == tensors.keys() and all(torch.equal(got[name], tensor) for name, tensor in tensors.items())
    assert main(["adapter", "info", str(out)]) == 0
    said = capsys.readouterr().out
    assert "Stable Diffusion 1.5" in said and "plus, tokens of an image: 16" in said


class Harm:
    def __reduce__(self):
        return print, ("the pickle ran",)


def test_code_in_a_pickle_is_not_run(tmp_path, capsys):
    (tmp_path / "harm.bin").write_bytes(pickle.dumps(Harm(), protocol=2))
    torch.save({"image_proj": Harm()}, tmp_path / "harm.pt")
    for name in ("harm.bin", "harm.pt"):
        with pytest.raises(ContextDiffusionError, match=f"{name} is no pickle of tensors alone"):
            convert_pickle(tmp_path / name, tmp_path / "out.safetensors")
    assert "the pickle ran" not in capsys.readouterr().out
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"image_proj": [1]}, "list, expected tables"),
        ({"a": torch.ones(2)}, "no image adapter"),
        (3, "int, expected tables"),
    ],
)
def test_pickles_of_other_things(tmp_path, content, words):
    torch.save(content, tmp_path / "other.bin")
    with pytest.raises(ContextDiffusionError, match=f"other.bin: .*{words}"):
        convert_pickle(tmp_path / "other.bin", tmp_path / "out.safetensors")


def test_wrong_names_and_places(tmp_path, file):
    with pytest.raises(ContextDiffusionError, match="does not end in .safetensors"):
        convert_pickle(file, tmp_path / "out.bin")
    with pytest.raises(ContextDiffusionError, match="cannot be read: No such file"):
        convert_pickle(tmp_path / "absent.bin", tmp_path / "out.safetensors")


def test_a_weight_that_is_missing_or_of_another_shape(tensors, tmp_path):
    path = tmp_path / "damaged.safetensors"
    save_file({name: tensor for name, tensor in tensors.items() if name != "image_proj.norm_out.bias"}, path)
    with pytest.raises(ContextDiffusionError, match="damaged.safetensors: its .* norm_out.bias is missing"):
        read_adapter(path)
    save_file(tensors | {"image_proj.layers.2.1.1.weight": torch.ones(3, 3)}, path)
    with pytest.raises(ContextDiffusionError, match=r"layers.2.1.1.weight is \[3, 3\], expected"):
        read_adapter(path)


def test_a_truncated_file(file):
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ContextDiffusionError, match="truncated"):
        read_adapter(file)
