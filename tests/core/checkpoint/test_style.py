"""Saved visual contexts: exact, whole or not at all, and never outside their folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from context_diffusion.checkpoint.style import encoder_mark, load_style, save_style, style_path
from context_diffusion.errors import ContextDiffusionError


def _tensors(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "last_hidden_state": torch.randn(1, 5, 8, generator=generator),
        "image_embeds": torch.randn(1, 4, generator=generator).half(),
    }


def test_a_style_comes_back_exactly(tmp_path: Path) -> None:
    path = style_path(tmp_path, "emoji/line art")
    tensors = _tensors()
    assert save_style(path, tensors, {"images": 3, "aggregation": "mean"})
    loaded, info = load_style(path)
    assert loaded.keys() == tensors.keys()
    assert all(
        torch.equal(loaded[name], tensors[name]) and loaded[name].dtype == tensors[name].dtype for name in loaded
    )
    assert info == {"format_version": 1, "width": 8, "tokens": 5, "images": 3, "aggregation": "mean"}
    assert [file.name for file in path.parent.iterdir()] == ["line art.safetensors"]


def test_another_style_is_not_lost(tmp_path: Path) -> None:
    path = style_path(tmp_path, "style")
    save_style(path, _tensors(), {})
    assert not save_style(path, _tensors(), {})  # the same again: nothing to do
    with pytest.raises(ContextDiffusionError, match="holds another style"):
        save_style(path, _tensors(1), {})
    assert torch.equal(load_style(path)[0]["last_hidden_state"], _tensors()["last_hidden_state"])
    assert save_style(path, _tensors(1), {}, overwrite=True)
    assert torch.equal(load_style(path)[0]["last_hidden_state"], _tensors(1)["last_hidden_state"])


def test_a_loaded_style_does_not_hang_on_its_file(tmp_path: Path) -> None:
    path = tmp_path / "style.safetensors"
    save_style(path, _tensors(), {})
    loaded, _ = load_style(path)
    # Tensors that share the file's memory would follow; where such a file is open, Windows does not replace it.
    with path.open("r+b") as file:
        file.seek(-(4 * 5 * 8 + 2 * 4), 2)
        file.write(bytes(4 * 5 * 8 + 2 * 4))
    assert all(torch.equal(loaded[name], tensor) for name, tensor in _tensors().items())


def test_nan_is_not_saved(tmp_path: Path) -> None:
    tensors = _tensors()
    tensors["image_embeds"][0, 0] = float("nan")
    with pytest.raises(ContextDiffusionError, match="image_embeds holds NaN"):
        save_style(tmp_path / "style.safetensors", tensors, {})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "name",
    ["", "  ", "..", "../out", "a/../../out", "/etc/out", "a//b", "a\\b", "C:out", ".hidden", "a/.b", "nul", "a\0b"]
    + ["a.", "con.txt", "what?", "/", "a/", "x\n"[:1] + "\ny"],
)
def test_a_name_cannot_leave_the_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(ContextDiffusionError, match="style's name"):
        style_path(tmp_path, name)


@pytest.mark.parametrize("name", ["my-style", "my-style.safetensors", " my-style "])
def test_names_with_and_without_the_suffix(tmp_path: Path, name: str) -> None:
    assert style_path(tmp_path, name) == tmp_path / "my-style.safetensors"


def test_a_name_too_long_is_said(tmp_path: Path) -> None:
    with pytest.raises(ContextDiffusionError, match="too long"):
        save_style(style_path(tmp_path, "x" * 300), _tensors(), {})


def test_damaged_and_foreign_files(tmp_path: Path) -> None:
    path = tmp_path / "style.safetensors"
    save_style(path, _tensors(), {})
    content = path.read_bytes()
    cases = {
        "truncated": content[:-7],
        "empty": b"",
        "not a .safetensors": b"nonsense that is long enough to look at",
        "its description is not": content.replace(b"last_hidden_state", b"LAST_hidden_state"),
        "its description is not what": content.replace(b'{\\"format_version\\"', b'{\\"FORMAT_version\\"'),
        "its image_embeds is not what": content[:-1] + bytes([content[-1] ^ 1]),
    }
    for message, damaged in cases.items():
        path.write_bytes(damaged)
        with pytest.raises(ContextDiffusionError, match=message):
            load_style(path)
    path.unlink()
    with pytest.raises(ContextDiffusionError, match="does not exist"):
        load_style(path)

    save_file({"last_hidden_state": torch.zeros(1, 5, 8)}, path)
    with pytest.raises(ContextDiffusionError, match="not a saved visual context"):
        load_style(path)

    save_file({"image_embeds": torch.zeros(1, 8)}, path, {"context_diffusion.visual_context": '{"format_version": 1}'})
    with pytest.raises(ContextDiffusionError, match="its last_hidden_state is missing"):
        load_style(path)

    for described, message in (({"format_version": 2}, "format version 2"), (["a list"], "cannot be read")):
        save_file(_tensors(), path, {"context_diffusion.visual_context": json.dumps(described)})
        with pytest.raises(ContextDiffusionError, match=message):
            load_style(path)


def test_the_mark_of_an_encoder_is_its_weights_and_not_its_dtype():
    weights = {"a.weight": torch.randn(3, 3), "a.bias": torch.randn(3), "norm.weight": torch.randn(4)}
    mark = encoder_mark(weights)
    assert mark == encoder_mark({name: value.half() for name, value in reversed(weights.items())})
    assert mark != encoder_mark({**weights, "a.bias": weights["a.bias"] + 0.01})
    assert mark != encoder_mark({"b.bias": weights["a.bias"], **{n: v for n, v in weights.items() if n != "a.bias"}})
