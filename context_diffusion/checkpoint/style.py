"""A saved visual context ("style"): what the image encoder made of the context images, in one .safetensors file."""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import ContextDiffusionError, brief
from ..files import parse_json, write_tensors
from .header import CHECKSUM_KEY, DTYPES, checksums, open_tensors

SUFFIX = ".safetensors"
FORMAT_VERSION = 1
# What the host's image encoders give for each image, the first always.
TOKENS = "last_hidden_state"
FEATURES = (TOKENS, "penultimate_hidden_states", "image_embeds", "all_hidden_states", "mm_projected")

# A dozen images of the largest CLIP, joined by `concat` with all their hidden states.
_LARGEST = 512 * 2**20
_KEY = "context_diffusion.visual_context"
_HINT = "choose a file that Save Visual Context wrote"
# What is known of a style beside its features, and what it must look like to be of use.
_INFO = {"images": int, "aggregation": str, "encoder": str, "image_sizes": list}
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
    # A copy each: tensors that share memory are refused, and strides are not kept.
    plain = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    _check_features("the visual context", plain)
    tokens = plain[TOKENS]
    described = {"format_version": FORMAT_VERSION, "width": tokens.shape[-1], "tokens": tokens.shape[-2], **info}
    metadata = {_KEY: json.dumps(described, sort_keys=True)}
    if os.path.isfile(path):  # says no where Path.is_file raises, on names too long
        if _holds(path, plain, metadata):
            return False
        if not overwrite:
            raise ContextDiffusionError(
                f"{path.name} exists and holds another style: choose another name, or switch overwrite on"
            )
    write_tensors(path, plain, metadata | {CHECKSUM_KEY: checksums(metadata, plain)})
    return True


def load_style(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, object]]:
    """Read a style.

    Returns:
        Its tensors by name, `last_hidden_state` (rows, N, d_v) among them, on the CPU, and what `save_style`
        was told of it.

    Raises:
        ContextDiffusionError: missing, damaged, another kind of file, or written by a newer version.
    """
    with open_tensors(path) as file:
        if _KEY not in file.metadata:
            raise ContextDiffusionError(f"{path} is a .safetensors file, but not a saved visual context: {_HINT}")
        size = max((entry.stop for entry in file.tensors.values()), default=0)
        if size > _LARGEST:
            raise ContextDiffusionError(f"{path} has {size} bytes of data, more than a style's {_LARGEST}: {_HINT}")
        info = _parse_info(path, file.metadata[_KEY])
        shape = file.tensors[TOKENS].shape if TOKENS in file.tensors else None
        if shape is None or len(shape) != 3 or 0 in shape:
            raise ContextDiffusionError(
                f"{path} is damaged: its {TOKENS} is {'missing' if shape is None else shape}; save it again"
            )
        features = [name for name in FEATURES if name in file.tensors]
        file.check_dtypes(features)
        return dict(tensor for name in features for tensor in file.read(name)), info


def _parse_info(path: str | os.PathLike[str], text: str) -> dict[str, Any]:
    """What `save_style` was told, checked."""
    try:
        info = parse_json(text)
        version = info["format_version"]
    except (ValueError, TypeError, KeyError) as error:
        raise ContextDiffusionError(f"{path} is damaged: its description cannot be read; save it again") from error
    if version != FORMAT_VERSION:
        raise ContextDiffusionError(
            f"{path} has format version {brief(version)}, this Context Diffusion reads {FORMAT_VERSION}: update it, "
            "or save the style again"
        )
    sizes = info.get("image_sizes", [])
    wrong = [name for name, kind in _INFO.items() if name in info and type(info[name]) is not kind]
    if not wrong and not all(isinstance(size, list) and all(type(side) is int for side in size) for size in sizes):
        wrong = ["image_sizes"]
    if wrong:
        raise ContextDiffusionError(f"{path} is damaged: its {wrong[0]} is {brief(info[wrong[0]])}; save it again")
    return info


def _holds(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> bool:
    """Whether a file is this very style already."""
    try:
        with open_tensors(path) as file:
            if file.metadata != metadata or file.tensors.keys() != tensors.keys():
                return False
            held = dict(tensor for name in tensors for tensor in file.read(name))
    except ContextDiffusionError:
        return False
    return all(held[name].dtype == tensor.dtype and torch.equal(held[name], tensor) for name, tensor in tensors.items())


def _check_features(what: str, tensors: dict[str, Tensor]) -> None:
    """Refuse to save what would not be loaded."""
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise ContextDiffusionError(f"{what}'s {name} holds NaN or infinite values: encode it again")
        if name not in FEATURES or tensor.dtype not in DTYPES.values():
            raise ContextDiffusionError(f"{what} holds {name} of {tensor.dtype}, which no style has")
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    if size > _LARGEST:
        raise ContextDiffusionError(f"{what} has {size} bytes, more than a style's {_LARGEST}: join fewer images")
