"""Files that have their metadata in a tensor, as ComfyUI's own nodes save them."""

import pytest
import torch
from safetensors.torch import save_file

from context_diffusion.checkpoint.read import load_checkpoint, read_metadata
from context_diffusion.checkpoint.saved import SAVED_KEY, metadata_tensor

from .rewriting import read, refused

# What the nodes put beside any model's weights.
THEIRS = {"prompt": "{}", "workflow": "{}", "modelspec.predict_key": "v", "modelspec.title": "ComfyUI 1"}


def _save(saved, **tensors):
    """The file as such a node writes it; the file itself is not touched."""
    weights, metadata = read(saved)
    file = saved.with_stem("by a node")
    save_file({**weights, SAVED_KEY: metadata_tensor(metadata), "v_pred": torch.empty(0), **tensors}, file, THEIRS)
    return file


def test_it_is_a_checkpoint_like_any_other(saved):
    file = _save(saved)
    before, after = load_checkpoint(saved).state_dict(), load_checkpoint(file).state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
    before, after = read_metadata(saved), read_metadata(file)
    for key in before.keys() - {"path", "size"}:
        assert before[key] == after[key], key


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(3),
        torch.frombuffer(bytearray(b"{"), dtype=torch.uint8),
        torch.frombuffer(bytearray(b"[1]"), dtype=torch.uint8),
        torch.frombuffer(bytearray(b'{"context_diffusion.config": 1}'), dtype=torch.uint8),
        torch.zeros(17 * 2**20, dtype=torch.uint8),
    ],
    ids=["floats", "no JSON", "no table", "no text", "too large"],
)
def test_another_tensor_of_that_name_is_refused(saved, tensor):
    refused(_save(saved, **{SAVED_KEY: tensor}), f"{SAVED_KEY} cannot be read .*save it again")
