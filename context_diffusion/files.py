"""Writing files so that nobody ever sees half of one."""

from __future__ import annotations

import errno
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import ContextDiffusionError

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


@contextmanager
def write_atomically(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Write to a temporary file beside `path` that takes its name only when the block ends without an error.

    Missing parent folders are made. Whatever goes wrong, an earlier file at `path` stays as it was and
    the temporary file is removed.

    Args:
        path: the file to make or replace.

    Yields:
        The temporary file's path, for the block to write to. The file does not exist yet.

    Raises:
        ContextDiffusionError: `path` is a folder, or the folder is read-only, full or cannot be made.
    """
    path = Path(path)
    if os.path.isdir(path):
        raise ContextDiffusionError(f"cannot write {path}: it is a folder; give a file name in it")
    # Short and independent of the name, so that a long name does not become too long.
    temporary = path.with_name(f".{uuid.uuid4().hex[:16]}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        reason = _REASONS.get(error.errno or 0, error.strerror or str(error))
        raise ContextDiffusionError(f"cannot write {path}: {reason}") from error
    finally:
        try:
            temporary.unlink(missing_ok=True)
        except OSError:  # the folder is gone or read-only: the first error says so already
            pass
