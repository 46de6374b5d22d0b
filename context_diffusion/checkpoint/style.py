"""A saved visual context ("style"): what the image encoder made of the context images, in one .safetensors file."""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..errors import ContextDiffusionError
from ..files import write_atomically
from .header import read_header

SUFFIX = ".safetensors"
FORMAT_VERSION = 1
# The tensor that every style has; the others depend on the encoder.
TOKENS = "last_hidden_state"

_KEY = "context_diffusion.visual_context"
# What some file system refuses, Windows' list included, so that a style can be carried anywhere.
_FORBIDDEN = re.compile(r'[<>:"|?*\\\x00-\x1f]')
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)


def encoder_mark(weights: dict[str, Tensor]) -> str:
    """A short name for an image encoder, the same for a file of it in fp32 and one in fp16.

    Tokens of one encoder are noise to the projector of another, even where they are as wide.

    Args:
        weights: of the image encoder, by name. Biases and norms alone count: training moves all of them, and they are
            few.
    """
    digest = hashlib.sha256()
    for name in sorted(weights):
        if weights[name].ndim == 1:
            digest.update(name.encode() + weights[name].half().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def style_path(folder: str | os.PathLike[str], name: str) -> Path:
    """The file of a style in a folder of styles.

    Args:
        folder: the folder.
        name: the style's name, with or without .safetensors; sub-folders with "/".

    Raises:
        ContextDiffusionError: an empty name, or one that some system refuses or that leads out of the folder.
    """
    text = name.strip().removesuffix(SUFFIX).strip()
    parts = text.split("/")
    hint = 'give a plain name such as "my-style"; a "/" makes a sub-folder'
    for part in parts:
        if not part or part[0] == "." or part[-1] in ". " or part != part.lstrip():
            raise ContextDiffusionError(f"the style's name is {name!r}, which no file can have here: {hint}")
        if _FORBIDDEN.search(part) or _RESERVED.fullmatch(part):
            raise ContextDiffusionError(
                f"the style's name is {name!r}, and {part!r} is not allowed as a file name everywhere: {hint}"
            )
    return Path(folder, *parts[:-1], parts[-1] + SUFFIX)


def save_style(
    path: str | os.PathLike[str], tensors: dict[str, Tensor], info: dict[str, object], overwrite: bool = False
) -> bool:
    """Write a style; nobody ever sees half of one.

    Args:
        path: the file.
        tensors: `last_hidden_state` (rows, N, d_v) and whatever else the encoder gave.
        info: what is known of it, as JSON values: images, aggregation.
        overwrite: replace another style at `path`. The very same style may always be saved again.

    Returns:
        False if the file held the same already, and was left alone.

    Raises:
        ContextDiffusionError: NaN in the tensors, or the path is taken or cannot be written.
    """
    path = Path(path)
    bad = _not_finite(tensors)
    if bad:
        raise ContextDiffusionError(f"the visual context's {bad} holds NaN or infinite values: encode it again")
    tokens = tensors[TOKENS]
    described = {"format_version": FORMAT_VERSION, "width": tokens.shape[-1], "tokens": tokens.shape[-2], **info}
    # A copy each: tensors that share memory are refused, and strides are not kept.
    plain = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    content = save(plain, {_KEY: json.dumps(described, sort_keys=True)})
    if os.path.isfile(path):  # says no where Path.is_file raises, on names too long
        if path.stat().st_size == len(content) and path.read_bytes() == content:
            return False
        if not overwrite:
            raise ContextDiffusionError(
                f"{path.name} exists and holds another style: choose another name, or switch overwrite on"
            )
    with write_atomically(path) as temporary:
        temporary.write_bytes(content)
    return True


def load_style(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, object]]:
    """Read a style.

    Returns:
        Its tensors by name, `last_hidden_state` (rows, N, d_v) among them, on the CPU, and what `save_style`
        was told of it.

    Raises:
        ContextDiffusionError: missing, damaged, another kind of file, or written by a newer version.
    """
    path = Path(path)
    header = read_header(path)
    hint = "choose a file that Save Visual Context wrote"
    if _KEY not in header.metadata:
        raise ContextDiffusionError(f"{path} is a .safetensors file, but not a saved visual context: {hint}")
    try:
        info = json.loads(header.metadata[_KEY])
        version = info["format_version"]
    except (ValueError, TypeError, KeyError) as error:
        raise ContextDiffusionError(f"{path} is damaged: its description cannot be read; save it again") from error
    if version != FORMAT_VERSION:
        raise ContextDiffusionError(
            f"{path} has format version {version}, this Context Diffusion reads {FORMAT_VERSION}: update it, "
            "or save the style again"
        )
    shape = header.tensors[TOKENS].shape if TOKENS in header.tensors else None
    if shape is None or len(shape) != 3 or 0 in shape:
        raise ContextDiffusionError(
            f"{path} is damaged: its {TOKENS} is {'missing' if shape is None else shape}; save it again"
        )
    try:
        with safe_open(path, framework="pt") as file:
            # Copies, or the style would hang on the open file: Windows could not replace it.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118, not a dict
    except (OSError, SafetensorError) as error:
        raise ContextDiffusionError(f"{path} is damaged ({error}): save it again") from error
    bad = _not_finite(tensors)
    if bad:
        raise ContextDiffusionError(f"{path} is damaged: its {bad} holds NaN or infinite values; save it again")
    return tensors, info


def _not_finite(tensors: dict[str, Tensor]) -> str | None:
    """The name of a tensor with NaN or infinite values in it."""
    return next((name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()), None)
