"""A checkpoint's metadata as a tensor: what ComfyUI's own nodes save of a model has no other place for it.

Those nodes fill the metadata of a file themselves, and ask a model for tensors alone (see `nodes.native.save`). Such a
file has a checkpoint's tensors under a checkpoint's names, this one, and what the nodes add for other models.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

import torch
from torch import Tensor

from ..errors import ContextDiffusionError
from ..files import parse_json
from .header import TensorFile
from .parts import PARTS

SAVED_KEY = "context_diffusion.metadata"

_OURS = ("context_diffusion.", "modelspec.")
_LARGEST = 16 * 2**20


def metadata_tensor(metadata: Mapping[str, str]) -> Tensor:
    """What describes a checkpoint, of all its metadata, as JSON in bytes (n,)."""
    text = json.dumps({key: value for key, value in metadata.items() if key.startswith(_OURS)})
    return torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)


def unpack_metadata(file: TensorFile) -> None:
    """Make an opened file look like any checkpoint where it has such a tensor: its metadata back in their place.

    Raises:
        ContextDiffusionError: the tensor is not what `metadata_tensor` makes.
    """
    if SAVED_KEY not in file.tensors:
        return
    entry = file.tensors[SAVED_KEY]
    try:
        if entry.dtype != "U8" or entry.elements > _LARGEST:
            raise ContextDiffusionError(f"it is {entry.dtype} of {entry.elements}")
        metadata = parse_json(file.read_bytes(SAVED_KEY))
        if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
            raise ContextDiffusionError("it is no table of texts")
    except ContextDiffusionError as error:
        raise ContextDiffusionError(f"{file.path}: {SAVED_KEY} cannot be read ({error}): save it again") from error
    theirs = {key: text for key, text in file.metadata.items() if not key.startswith(_OURS)}
    file.metadata = theirs | metadata
    file.tensors = {name: entry for name, entry in file.tensors.items() if name.partition(".")[0] in PARTS}
