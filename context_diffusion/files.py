"""Files read as what they are, and written so that nobody ever sees half of one."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import re
import stat
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from .errors import ContextDiffusionError

if TYPE_CHECKING:
    from torch import Tensor

_REASONS = {
    errno.ENOSPC: "the disk is full; free some space or choose another folder",
    errno.EDQUOT: "the disk quota is used up; free some space or choose another folder",
    errno.EACCES: "the folder is not writable; change its permissions or choose another folder",
    errno.EPERM: "the folder is not writable; change its permissions or choose another folder",
    errno.EROFS: "the file system is read-only; choose another folder",
    errno.ENAMETOOLONG: "the name is too long; choose a shorter one",
    errno.ENOTDIR: "a part of the path is a file and not a folder; choose another folder",
    errno.EEXIST: "a part of the path is a file and not a folder; choose another folder",
}

_KINDS = ((stat.S_ISDIR, "a folder"), (stat.S_ISFIFO, "a named pipe"), (stat.S_ISSOCK, "a socket"))

# What a killed program leaves behind has this name. A save that goes on writes to its file all the time.
_SCRATCH = re.compile(r"\.[0-9a-f]{16}\.part")
_ABANDONED_SECONDS = 3600

# Deeper than any config, and far from Python's own limit.
_DEEPEST_JSON = 32


def open_regular(path: str | os.PathLike[str], give: str = "a file") -> BinaryIO:
    """Open a file to read its bytes. What is no regular file is refused: a pipe waits for ever.

    Args:
        path: the file.
        give: what is wanted, for the messages.

    Raises:
        ContextDiffusionError: it does not exist, is no regular file, or cannot be read.
    """
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISREG(mode):
            return open(path, "rb")
    except FileNotFoundError as error:
        raise ContextDiffusionError(f"{os.fspath(path)} does not exist: give {give}") from error
    except OSError as error:
        raise ContextDiffusionError(f"{os.fspath(path)} cannot be read: {error.strerror or error}") from error
    kind = next((kind for test, kind in _KINDS if test(mode)), "a device")
    raise ContextDiffusionError(f"{os.fspath(path)} is {kind}: give {give}")


def parse_json(text: str | bytes) -> Any:
    """JSON that a stranger may have written.

    Raises:
        ContextDiffusionError: not JSON; a number that is infinite or has more than 18 digits; text that is no
            Unicode; nested deeper than 32. The message does not name the file.
    """
    try:
        value = json.loads(text.decode("utf-8") if isinstance(text, bytes) else text)
        _check_json(value, _DEEPEST_JSON)
    # Text that is no Unicode and numbers of thousands of digits are ValueErrors too.
    except (ValueError, RecursionError) as error:
        raise ContextDiffusionError(f"it is not JSON: {error}") from error
    return value


def _check_json(value: Any, depth: int) -> None:
    if isinstance(value, str):
        value.encode("utf-8")
    elif isinstance(value, dict | list):
        if depth == 0:
            raise ValueError(f"it is nested deeper than {_DEEPEST_JSON}")
        for each in value:
            _check_json(each, depth - 1)
        if isinstance(value, dict):
            for each in value.values():
                _check_json(each, depth - 1)
    elif (isinstance(value, float) and not math.isfinite(value)) or (isinstance(value, int) and abs(value) >= 2**63):
        raise ValueError("it has a number too large to be one")


@contextmanager
def write_atomically(path: str | os.PathLike[str], durable: bool = True) -> Iterator[Path]:
    """Write to a temporary file beside `path` that takes its name only when the block ends without an error.

    Missing parent folders are made, a file that is replaced gives its permissions, and a link to one stays a link.
    Whatever goes wrong, an earlier file at `path` stays as it was and the temporary file is removed; those that
    killed programs left in the folder are removed as well.

    Args:
        path: the file to make or replace.
        durable: wait until the file is on disk before it takes its name, so that a power cut leaves the earlier file
            or the new one. Off for files by the thousand that can be made again.

    Yields:
        The temporary file's path, for the block to write to. The file exists and is empty.

    Raises:
        ContextDiffusionError: `path` is a folder or no regular file, or the folder is read-only, full or cannot be
            made.
    """
    path = Path(path)
    if os.path.isdir(path):
        raise ContextDiffusionError(f"cannot write {path}: it is a folder; give a file name in it")
    target = Path(os.path.realpath(path))
    # Short and independent of the name, so that a long name does not become too long.
    temporary = target.with_name(f".{uuid.uuid4().hex[:16]}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        mode = _mode(path, target)
        # Some libraries make files that only their owner reads: keep what the folder and the user ask for.
        temporary.touch()
        mode = stat.S_IMODE(temporary.stat().st_mode) if mode is None else mode
        yield temporary
        temporary.chmod(mode)
        if durable:
            _sync(temporary)
        os.replace(temporary, target)
        if durable:
            _sync(target.parent)
            _sweep(target.parent)
    except OSError as error:
        reason = _REASONS.get(error.errno or 0, error.strerror or str(error))
        raise ContextDiffusionError(f"cannot write {path}: {reason}") from error
    finally:
        # Where the folder is gone or read-only, the first error says so already.
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_tensors(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write a .safetensors file by `write_atomically`.

    Args:
        path: the file.
        tensors: contiguous, no two in one piece of memory.
        metadata: of the file.

    Raises:
        ContextDiffusionError: as `write_atomically`.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    with write_atomically(path) as temporary:
        try:
            save_file(dict(tensors), temporary, metadata=None if metadata is None else dict(metadata))
        except SafetensorError as error:
            # The library has no other type for a full disk.
            raise OSError(str(error)) from error


def _mode(path: Path, target: Path) -> int | None:
    """The permissions of what is replaced; None where nothing is."""
    if not os.path.exists(target):  # says no where Path.exists raises, on names too long
        return None
    mode = target.stat().st_mode
    if not stat.S_ISREG(mode):
        raise ContextDiffusionError(f"cannot write {path}: it is no regular file; choose another name")
    return stat.S_IMODE(mode)


def _sync(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on disk."""
    if path.is_dir() and os.name == "nt":
        return  # Windows opens no folders and keeps their order itself.
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sweep(folder: Path) -> None:
    """Remove what killed programs left of the files that they were writing."""
    oldest = time.time() - _ABANDONED_SECONDS
    for name in filter(_SCRATCH.fullmatch, os.listdir(folder)):
        # Another program may sweep at the same time.
        with contextlib.suppress(OSError):
            if os.stat(folder / name).st_mtime < oldest:
                os.unlink(folder / name)
