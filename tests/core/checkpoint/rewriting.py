"""Checkpoints read and changed with the safetensors library alone."""

import json

import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from context_diffusion.checkpoint.read import load_checkpoint
from context_diffusion.errors import ContextDiffusionError


def read(file):
    with safe_open(file, framework="pt") as opened:
        return load_file(file), opened.metadata()


def rewrite(file, tensors=None, metadata=None, config=None):
    """Change a file's contents with the safetensors library alone; as in files without one, no checksum is left."""
    old_tensors, old_metadata = read(file)
    old_metadata.pop("context_diffusion.crc32", None)
    if config is not None:
        settings = json.loads(old_metadata["context_diffusion.config"])
        config(settings)
        old_metadata["context_diffusion.config"] = json.dumps(settings)
    for change, old in ((tensors, old_tensors), (metadata, old_metadata)):
        if change is not None:
            change(old)
    save_file(old_tensors, file, metadata=old_metadata)


def refused(file, message):
    with pytest.raises(ContextDiffusionError, match=message) as caught:
        load_checkpoint(file)
    assert file.name in str(caught.value) and "\n" not in str(caught.value)
