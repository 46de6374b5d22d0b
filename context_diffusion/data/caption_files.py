"""Captions of one's own pictures: a text or JSON file beside the picture, a JSON file of its folder, or its name."""

from __future__ import annotations

import logging
from pathlib import Path

from ..errors import ContextDiffusionError
from ..files import parse_json

logger = logging.getLogger(__name__)

FILE = "captions.json"


def read_captions(root: Path, pictures: list[Path]) -> dict[Path, str]:
    """What the pictures show, those without a caption left out.

    The first of these counts: STYLE/PICTURE.txt, STYLE/PICTURE.json, STYLE/captions.json ({"PICTURE.png": "text"}),
    ROOT/captions.json ({"STYLE/PICTURE.png": "text"}). In JSON a text may stand in {"caption": "text"}.

    Args:
        root: the folder of the styles' folders.
        pictures: paths ROOT/STYLE/PICTURE.

    Raises:
        ContextDiffusionError: a file that cannot be read, or holds something else than captions.
    """
    captions: dict[Path, str] = {}
    for picture in pictures:
        text, entry = picture.with_suffix(".txt"), picture.with_suffix(".json")
        if text.is_file():
            captions[picture] = " ".join(_read(text).split())
        elif entry.is_file() and entry.name != FILE:
            captions[picture] = _caption(entry, _read_json(entry))
    wanted = set(pictures)
    for folder in [*sorted({picture.parent for picture in pictures}), root]:
        file = folder / FILE
        if not file.is_file():
            continue
        table = _read_json(file)
        if not isinstance(table, dict):
            raise ContextDiffusionError(f'{file}: expected {{"PICTURE.png": "caption", ...}}')
        named = {folder / name: _caption(file, value) for name, value in table.items()}
        unknown = len(named.keys() - wanted)
        if unknown:
            logger.warning("%s names %d pictures that are not in the data set", file, unknown)
        captions = {**{path: text for path, text in named.items() if path in wanted}, **captions}
    return {picture: text for picture, text in captions.items() if text}


def _caption(file: Path, value: object) -> str:
    text = value.get("caption") if isinstance(value, dict) else value
    if not isinstance(text, str):
        raise ContextDiffusionError(f'{file}: expected captions, each a text or {{"caption": "text"}}')
    return " ".join(text.split())


def _read_json(file: Path) -> object:
    try:
        return parse_json(_read(file))
    except ContextDiffusionError as error:
        raise ContextDiffusionError(f"{file}: {error}") from error


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ContextDiffusionError(f"caption file {file} cannot be read as UTF-8 text ({error})") from error
