"""Output files: their names, and whether they can be written, found out before the work that fills them."""

from __future__ import annotations

import os
import tempfile
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

from ..errors import ContextDiffusionError


def output_files(path: Path, queries: Sequence[Path], count: int) -> list[Path]:
    """FILE for one image; FILE-1, FILE-2, ... for several, FILE-QUERYNAME for those of several queries, or both.

    Args:
        path: FILE; what is added stands before its suffix.
        queries: the images are named after, if there are several.
        count: images of each query, or in all.

    Raises:
        ContextDiffusionError: two queries have one name, or names that are one where case does not count.
    """
    names = [f"-{query.stem}" for query in queries] if len(queries) > 1 else [""]
    seen: dict[str, str] = {}
    for name in names:
        twin = seen.setdefault(unicodedata.normalize("NFC", name).casefold(), name)
        if twin is not name:
            both = name[1:] if twin == name else f"{twin[1:]} and {name[1:]}, one name on other systems"
            raise ContextDiffusionError(
                f"two of the queries are called {both}, and outputs are named after them: rename one, or give them to "
                "two commands"
            )
    numbers = [""] if count == 1 else [f"-{number}" for number in range(1, count + 1)]
    return [path.with_name(f"{path.stem}{name}{number}{path.suffix}") for name in names for number in numbers]


def check_keeps(inputs: Iterable[Path], files: Iterable[Path]) -> None:
    """Refuse outputs that would take the place of what they are made from.

    Args:
        inputs: files that are read.
        files: to be written later.

    Raises:
        ContextDiffusionError: one of `files` is one of `inputs`, under whatever name.
    """
    inputs = [path for path in inputs if os.path.exists(path)]
    for file in files:
        if os.path.exists(file) and any(os.path.samefile(file, path) for path in inputs):
            raise ContextDiffusionError(f"{file} is an input and would be replaced: give --out another name")


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
