"""Models that come with the package, and example inputs for them (see `examples`)."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import ContextDiffusionError

DEFAULT_MODEL = "emoji-128"

_FOLDER = Path(__file__).parent
_SUFFIX = ".safetensors"


def bundled_models() -> list[str]:
    """Names of the models in the package, sorted."""
    return sorted(path.stem for path in _FOLDER.glob(f"*{_SUFFIX}"))


def bundled_model_path(name: str = DEFAULT_MODEL) -> Path:
    """Where a bundled model's file is.

    Args:
        name: one of `bundled_models()`.

    Raises:
        ContextDiffusionError: no such model in this installation.
    """
    if name not in bundled_models():
        there = ", ".join(bundled_models()) or "none in this installation"
        raise ContextDiffusionError(
            f"there is no bundled model {name!r} (bundled: {there}): give one of these names, or the path of "
            f"a {_SUFFIX} file"
        )
    return _FOLDER / f"{name}{_SUFFIX}"


def bundled_styles() -> dict[str, Path]:
    """The saved visual contexts in the package (see `checkpoint.style`), by name, sorted."""
    return {path.stem: path for path in sorted((_FOLDER / "styles").glob(f"*{_SUFFIX}"))}


def find_model(name_or_file: str | os.PathLike[str]) -> Path:
    """A checkpoint's path, from a bundled model's name or from a path.

    Args:
        name_or_file: a name of `bundled_models()`; anything with a suffix or a folder in it is a path. A file
            of the same name as a bundled model is reached by `./NAME`.

    Raises:
        ContextDiffusionError: neither.
    """
    text = os.fspath(name_or_file)
    if text in bundled_models():
        return bundled_model_path(text)
    path = Path(text)
    if path.exists():
        return path
    if path.suffix or len(path.parts) > 1:
        raise ContextDiffusionError(f"model {text} does not exist: check the file name")
    return bundled_model_path(text)
