"""A .safetensors file: its header, what is wrong with it, and its tensors by plain reads.

The library maps the file into memory: where another program cuts it short meanwhile, that ends the process.
"""

from __future__ import annotations

import json
import math
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

import torch
from torch import Tensor

from ..errors import ContextDiffusionError, brief
from ..files import open_regular, parse_json

# SAFETENSORS' own names of what a weight may be.
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
CHECKSUM_KEY = "context_diffusion.crc32"

# A model with CLIP's whole vocabulary and thousands of tensors has two million bytes.
LARGEST_HEADER = 16 * 2**20
_MOST_AXES = 8
# What the checksum of all but the data is filed under; no tensor has an empty name.
_DESCRIPTION = ""


class TensorEntry(NamedTuple):
    """One tensor of the file: dtype as safetensors writes it ("F16"), shape, and its bytes behind the header."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


class TensorFile:
    """An opened .safetensors file, see `open_tensors`.

    Attributes:
        path: the file.
        metadata: texts by name, without the checksum.
        tensors: what is in it, by name.
        size: in bytes.
    """

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path, self._file = path, file
        self._state = os.fstat(file.fileno())
        self.size = self._state.st_size
        text = self._header()
        self._data = 8 + len(text)
        self.metadata, self.tensors = _parse(path, text, self.size - self._data)
        self._checksums = _parse_checksums(path, self.metadata.pop(CHECKSUM_KEY, None))
        dtypes = {name: (DTYPES.get(entry.dtype), entry.shape) for name, entry in self.tensors.items()}
        self._compare(_DESCRIPTION, _describe(self.metadata, dtypes))

    def read(self, group: str) -> Iterator[tuple[str, Tensor]]:
        """The tensors of a group, one at a time, as (name, CPU tensor in memory of its own).

        Args:
            group: the first word of the names, up to a dot. Read all of it: what is checked as a whole is
                known to be sound behind the last one.

        Raises:
            ContextDiffusionError: a dtype that no weight has, values that are not finite, a file that is
                damaged or is written to.
        """
        checksum = 0
        for name in sorted(name for name in self.tensors if _group(name) == group):
            tensor = self._read(name)
            checksum = zlib.crc32(_bytes_of(tensor), checksum)
            yield name, tensor
        self._compare(group, checksum)
        state = os.fstat(self._file.fileno())
        if (state.st_size, state.st_mtime_ns) != (self._state.st_size, self._state.st_mtime_ns):
            raise ContextDiffusionError(f"{self.path} was written to while it was read: try again")

    def read_bytes(self, name: str) -> bytes:
        """A tensor's bytes, of any dtype."""
        entry = self.tensors[name]
        return self._bytes(self._data + entry.start, entry.stop - entry.start)

    def check_dtypes(self, names: Iterable[str] | None = None) -> None:
        """Refuse tensors that are no weights, before any is read.

        Args:
            names: of the tensors; all when None.

        Raises:
            ContextDiffusionError: naming the first.
        """
        for name in self.tensors if names is None else names:
            dtype = self.tensors[name].dtype
            if dtype not in DTYPES:
                raise ContextDiffusionError(
                    f"{self.path}: {name} has dtype {brief(dtype)}: save it with {', '.join(DTYPES)}"
                )

    def _header(self) -> bytes:
        """The header's text, of a file that may be anything."""
        path, size = self.path, self.size
        if size == 0:
            raise ContextDiffusionError(f"{path} is empty (0 bytes): copy or save it again")
        start = self._bytes(0, 8) if size >= 8 else b""
        length = int.from_bytes(start, "little")
        peek = self._bytes(0, min(size, 72))
        _refuse_foreign(path, peek)
        looks_right = bool(start) and peek[8:9] in (b"{", b"")
        if looks_right and length > LARGEST_HEADER:
            raise ContextDiffusionError(
                f"{path} has a header of {length} bytes, more than {LARGEST_HEADER}: it is damaged or no model"
            )
        if looks_right and size - 8 < length:
            raise ContextDiffusionError(
                f"{path} is truncated: {size} bytes, and its header alone has {length}; copy or save it again"
            )
        if not start or not 0 < length <= min(LARGEST_HEADER, size - 8):
            raise ContextDiffusionError(f"{path} is not a .safetensors file (it starts with {peek[:8]!r})")
        return self._bytes(8, length)

    def _read(self, name: str) -> Tensor:
        self.check_dtypes([name])
        entry = self.tensors[name]
        tensor = torch.empty(entry.shape, dtype=DTYPES[entry.dtype], device="cpu")
        self._fill(self._data + entry.start, _bytes_of(tensor))
        if not torch.isfinite(tensor).all():
            raise ContextDiffusionError(f"{self.path}: {name} holds NaN or infinite values, it cannot be used")
        return tensor

    def _bytes(self, offset: int, length: int) -> bytes:
        buffer = bytearray(length)
        self._fill(offset, memoryview(buffer))
        return bytes(buffer)

    def _fill(self, offset: int, buffer: memoryview) -> None:
        try:
            self._file.seek(offset)
            count = self._file.readinto(buffer)
        except OSError as error:
            raise ContextDiffusionError(f"{self.path} cannot be read: {error.strerror or error}") from error
        if count != len(buffer):
            raise ContextDiffusionError(f"{self.path} was cut short while it was read: copy or save it again")

    def _compare(self, group: str, checksum: int) -> None:
        if self._checksums and self._checksums.get(group) != checksum:
            raise ContextDiffusionError(
                f"{self.path} is damaged: its {group or 'description'} is not what was saved (the checksum differs); "
                f"copy or save it again. Who changes a file on purpose takes {CHECKSUM_KEY} out of its metadata"
            )


@contextmanager
def open_tensors(path: str | os.PathLike[str]) -> Iterator[TensorFile]:
    """Open a .safetensors file and check its header, once. Pickles are recognised and never opened.

    Raises:
        ContextDiffusionError: the file is missing, no regular file, empty, truncated, a pickle or something else; or
            it carries a checksum and its description is not what was saved.
    """
    with open_regular(path, "a .safetensors file") as file:
        yield TensorFile(Path(path), file)


def checksums(metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
    """What a file is to carry as `CHECKSUM_KEY`, CRC-32 each, as JSON: of what describes it and of each group.

    The description is our own metadata and the tensors' names, dtypes and shapes; other metadata (the title, the
    author) may be edited by others.

    Args:
        metadata: of the file.
        tensors: contiguous, on the CPU.
    """
    dtypes = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    values = {_DESCRIPTION: _describe(metadata, dtypes)}
    for name in sorted(tensors):
        values[_group(name)] = zlib.crc32(_bytes_of(tensors[name]), values.get(_group(name), 0))
    return json.dumps(values)


def _describe(metadata: Mapping[str, str], dtypes: Mapping[str, tuple[torch.dtype | None, tuple[int, ...]]]) -> int:
    own = sorted((key, text) for key, text in metadata.items() if key.startswith("context_diffusion."))
    tensors = sorted((name, str(dtype), shape) for name, (dtype, shape) in dtypes.items())
    return zlib.crc32(json.dumps([own, tensors]).encode())


def _group(name: str) -> str:
    return name.partition(".")[0]


def _bytes_of(tensor: Tensor) -> memoryview:
    return memoryview(tensor.reshape(-1).view(torch.uint8).numpy())


def _refuse_foreign(path: Path, start: bytes) -> None:
    """Name what a file is when it is one of the kinds that people give by mistake."""
    pickle = "only .safetensors files are opened, since opening a pickle can run any code: convert it first"
    if start[:4] == b"PK\x03\x04":
        raise ContextDiffusionError(f"{path} is a zip archive, as PyTorch writes pickles (.pt, .ckpt, .bin): {pickle}")
    # A header of 0x..80 bytes has the same two bytes, and "{" after the length.
    if start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05") and start[8:9] != b"{":
        raise ContextDiffusionError(f"{path} is a pickle (.pt, .ckpt, .bin): {pickle}")
    if start.startswith(b"version https://git-lfs"):
        raise ContextDiffusionError(f"{path} is a Git LFS pointer, not the file itself: run `git lfs pull`")
    if start.startswith(b"GGUF"):
        raise ContextDiffusionError(f"{path} is a GGUF file: give a .safetensors file")
    if start.lstrip()[:5].lower() in (b"<!doc", b"<html"):
        raise ContextDiffusionError(f"{path} is a web page, not the file itself: download it again")


def _parse(path: Path, text: bytes, size: int) -> tuple[dict[str, str], dict[str, TensorEntry]]:
    """Metadata and tensors of a header over `size` bytes of data."""
    try:
        header = parse_json(text)
        metadata = header.pop("__metadata__", {})
        tensors = {name: _entry(entry) for name, entry in header.items()}
        strings = all(isinstance(value, str) for value in metadata.values())
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ContextDiffusionError(
            f"{path} is not a .safetensors file: its header cannot be read ({error})"
        ) from error
    if not strings:
        raise ContextDiffusionError(f"{path} is not a .safetensors file: its metadata are not strings")
    end = 0
    for name, entry in sorted(tensors.items(), key=lambda item: item[1][2:]):
        itemsize = DTYPES[entry.dtype].itemsize if entry.dtype in DTYPES else None
        if entry.start != end or (itemsize and entry.stop - end != entry.elements * itemsize):
            raise ContextDiffusionError(f"{path} is damaged: its header gives {name} a place that does not fit it")
        end = entry.stop
    if size < end:
        raise ContextDiffusionError(f"{path} is truncated: {size} of {end} bytes of data; copy or save it again")
    if size > end:
        raise ContextDiffusionError(f"{path} has {size} bytes of data where its header says {end}: save it again")
    return metadata, tensors


def _entry(entry: dict) -> TensorEntry:
    dtype, shape, (start, stop) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
    whole = all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in (*shape, start, stop))
    if not (isinstance(dtype, str) and whole and start <= stop and len(shape) <= _MOST_AXES):
        raise ValueError(f"no tensor: {brief(entry)}")
    return TensorEntry(dtype, shape, start, stop)


def _parse_checksums(path: Path, text: str | None) -> dict[str, int] | None:
    if text is None:
        return None
    try:
        values = parse_json(text)
    except ContextDiffusionError as error:
        raise ContextDiffusionError(
            f"{path} is damaged: its checksum cannot be read ({error}); save it again"
        ) from error
    if not isinstance(values, dict) or _DESCRIPTION not in values:
        raise ContextDiffusionError(f"{path} is damaged: its checksum cannot be read; copy or save it again")
    return values
