"""The header of a .safetensors file: what it holds, read without a tensor, and what is wrong with it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import NamedTuple

from ..errors import ContextDiffusionError

# The format's own limit.
_LARGEST_HEADER = 100_000_000


class TensorEntry(NamedTuple):
    """One tensor of the file: dtype as safetensors writes it ("F16"), and shape."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


class Header(NamedTuple):
    """Metadata, tensors by name, and the file's size in bytes."""

    metadata: dict[str, str]
    tensors: dict[str, TensorEntry]
    size: int


def read_header(path: str | Path) -> Header:
    """Read and check the header of a .safetensors file. Pickles are recognised and never opened.

    Raises:
        ContextDiffusionError: the file is missing, a folder, empty, truncated, a pickle or something else.
    """
    path = Path(path)
    if path.is_dir():
        raise ContextDiffusionError(f"{path} is a folder: give a .safetensors file")
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(8)
            length = int.from_bytes(start, "little")
            text = file.read(length) if len(start) == 8 and length <= min(_LARGEST_HEADER, size - 8) else b""
            peek = start + (text or file.read(64))[:64]
    except FileNotFoundError as error:
        raise ContextDiffusionError(f"{path} does not exist: give a .safetensors file") from error
    except OSError as error:
        raise ContextDiffusionError(f"{path} cannot be read: {error.strerror or error}") from error
    if size == 0:
        raise ContextDiffusionError(f"{path} is empty (0 bytes): copy or save it again")
    _refuse_foreign(path, peek)
    if not text:
        if len(start) == 8 and size - 8 < length <= _LARGEST_HEADER and peek[8:9] in (b"{", b""):
            raise ContextDiffusionError(
                f"{path} is truncated: {size} bytes, and its header alone has {length}; copy or save it again"
            )
        raise ContextDiffusionError(f"{path} is not a .safetensors file (it starts with {peek[:8]!r})")
    metadata, tensors, end = _parse(path, text)
    expected = 8 + length + end
    if size < expected:
        raise ContextDiffusionError(f"{path} is truncated: {size} of {expected} bytes; copy or save it again")
    if size > expected:
        raise ContextDiffusionError(f"{path} has {size} bytes where its header says {expected}: save it again")
    return Header(metadata, tensors, size)


def _refuse_foreign(path: Path, start: bytes) -> None:
    """Name what a file is when it is one of the kinds that people give by mistake."""
    pickle = "only .safetensors files are opened, since opening a pickle can run any code: convert it first"
    if start[:4] == b"PK\x03\x04":
        raise ContextDiffusionError(f"{path} is a zip archive, as PyTorch writes pickles (.pt, .ckpt, .bin): {pickle}")
    if start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        # A header of 0x..80 bytes has the same two bytes, and "{" after the length.
        if start[8:9] != b"{":
            raise ContextDiffusionError(f"{path} is a pickle (.pt, .ckpt, .bin): {pickle}")
    if start.startswith(b"version https://git-lfs"):
        raise ContextDiffusionError(f"{path} is a Git LFS pointer, not the file itself: run `git lfs pull`")
    if start.startswith(b"GGUF"):
        raise ContextDiffusionError(f"{path} is a GGUF file: give a .safetensors file")
    if start.lstrip()[:5].lower() in (b"<!doc", b"<html"):
        raise ContextDiffusionError(f"{path} is a web page, not the file itself: download it again")


def _parse(path: Path, text: bytes) -> tuple[dict[str, str], dict[str, TensorEntry], int]:
    try:
        header = json.loads(text)
        metadata = header.pop("__metadata__", {})
        tensors, end = {}, 0
        for name, entry in header.items():
            tensors[name] = TensorEntry(str(entry["dtype"]), tuple(int(n) for n in entry["shape"]))
            end = max(end, int(entry["data_offsets"][1]))
        strings = all(isinstance(value, str) for value in metadata.values())
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
        raise ContextDiffusionError(f"{path} is not a .safetensors file: its header cannot be read") from error
    if not strings:
        raise ContextDiffusionError(f"{path} is not a .safetensors file: its metadata are not strings")
    return metadata, tensors, end
