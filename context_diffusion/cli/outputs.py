"""Output files: their names, and whether they can be written, found out before the work that fills them."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from ..errors import ContextDiffusionError


def numbered(path: Path, count: int) -> list[Path]:
    """FILE for one image, FILE-1, FILE-2, ... (before the suffix) for several."""
    if count == 1:
        return [path]
    return [path.with_name(f"{path.stem}-{number}{path.suffix}") for number in range(1, count + 1)]


def one_a_query(path: Path, queries: Sequence[Path]) -> list[Path]:
    """FILE for one query or none, FILE-QUERYNAME (before the suffix) for each of several.

    Raises:
        ContextDiffusionError: two queries have one name.
    """
    if len(queries) < 2:
        return [path]
    names = [query.stem for query in queries]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ContextDiffusionError(
            f"two of the queries are called {twice}, and outputs are named after them: rename one, or give them to two "
            "commands"
        )
    return [path.with_name(f"{path.stem}-{name}{path.suffix}") for name in names]


def check_writable(path: Path) -> None:
    """Refuse an output whose folder cannot take a file. Missing folders are made later, when it is written.

    Args:
        path: the file to be written later.

    Raises:
        ContextDiffusionError: the folder, or the nearest one above it that exists, is no folder, read-only or
            full.
    """
    folder = path.absolute().parent
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    if not folder.is_dir():
        raise ContextDiffusionError(f"cannot write {path}: {folder} is a file and not a folder; choose another")
    try:
        # Permission bits do not tell: file systems are mounted read-only, and root may write anywhere.
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"\0")
            file.flush()
    except OSError as error:
        reason = error.strerror or str(error)
        raise ContextDiffusionError(
            f"cannot write {path}: no file can be made in {folder} ({reason}); choose another folder"
        ) from error
