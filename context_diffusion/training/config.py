"""Training configuration: one TOML file a stage, checked before anything is loaded."""

from __future__ import annotations

import argparse
import difflib
import sys
from dataclasses import Field
from pathlib import Path
from typing import Any, TypeVar

from ..errors import ContextDiffusionError
from ..ranges import Range, whole_number
from .settings import SETTINGS, RunConfig, is_needed, table_fields

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["OPTIONS", "RunConfig", "add_options", "load_config", "read_table", "stage_settings"]

Table = TypeVar("Table")

# Settings of [run] that options of the command line replace.
OPTIONS = ("data", "out", "steps", "precision", "seed", "processes", "threads")


def add_options(parser: argparse.ArgumentParser) -> None:
    """`OPTIONS`, and --stop-after."""
    for item in table_fields(RunConfig):
        if item.name in OPTIONS:
            takes = item.metadata["takes"]
            kind, metavar = (takes, "N") if isinstance(takes, Range) else (str, item.name.upper())
            parser.add_argument(f"--{item.name}", type=kind, metavar=metavar, help=item.metadata["help"])
    parser.add_argument(
        "--stop-after", type=whole_number(1), metavar="N", help="leave after this step, with the state saved"
    )


def load_config(path: str | Path, overrides: dict | None = None) -> RunConfig:
    """Read a stage's TOML file.

    A file may begin with `base = "other.toml"`, a path from its own folder: it then says only what it has other than
    that file.

    Args:
        path: the file; relative folders in it are taken from the current folder.
        overrides: values of the [run] table that replace the file's, None ones left out.

    Raises:
        ContextDiffusionError: unreadable file, unknown or missing names, or values of the wrong type or range.
    """
    path = Path(path)
    tables = _read(path)
    try:
        run = _table("run", tables.pop("run", {}))
        run = {**run, **{name: value for name, value in (overrides or {}).items() if value is not None}}
        config = read_table(RunConfig, "run", run)
        config.settings = _table(config.stage, tables.pop(config.stage, {}))
        if tables:
            raise ContextDiffusionError(f"unknown table [{min(tables)}]; expected [run] and [{config.stage}]")
        stage_settings(config)
    except ContextDiffusionError as error:
        raise ContextDiffusionError(f"{path}: {error}") from error
    return config


def stage_settings(config: RunConfig) -> Any:
    """The stage's own settings, of the class in `settings.SETTINGS`.

    Raises:
        ContextDiffusionError: as `read_table`.
    """
    return read_table(SETTINGS[config.stage], config.stage, config.settings)


def read_table(kind: type[Table], name: str, values: dict) -> Table:
    """A table of a config as its dataclass, defaults filled in.

    Raises:
        ContextDiffusionError: unknown or missing names, or values that do not fit, alone or together.
    """
    known = {item.name: item for item in table_fields(kind)}
    for key in values:
        # What nothing would read: a slip of the pen must not train with the default.
        if key not in known:
            nearest = difflib.get_close_matches(key, known, n=1, cutoff=0.0)[0]
            raise ContextDiffusionError(
                f"[{name}] has no setting {key!r}, the nearest is {nearest!r}; it has {', '.join(known)}"
            )
    read = {key: _value(name, known[key], value) for key, value in values.items()}
    missing = [key for key, item in known.items() if is_needed(item) and key not in read]
    if missing:
        raise ContextDiffusionError(f"[{name}] lacks {', '.join(missing)}")
    of_its_own = {key: None for key, item in known.items() if any(map(values.get, item.metadata["own"]))}
    return kind(**{**of_its_own, **read})


def _value(table: str, item: Field, value: object) -> object:
    takes = item.metadata["takes"]
    if isinstance(takes, type):
        return read_table(takes, f"{table}.{item.name}", _table(f"{table}.{item.name}", value))
    if value not in takes:
        kind = f" ({'int' if takes.whole else 'float'})" if isinstance(takes, Range) else ""
        raise ContextDiffusionError(f"[{table}] {item.name} is {value!r}, expected {takes}{kind}")
    return tuple(value) if isinstance(value, list) else value


def _table(name: str, value: object) -> dict:
    if not isinstance(value, dict):
        raise ContextDiffusionError(f"{name} is {value!r}, expected a table [{name}]")
    return value


def _read(path: Path, readers: tuple[Path, ...] = ()) -> dict:
    """The tables of a file on top of those of its bases."""
    if path.resolve() in readers:
        raise ContextDiffusionError(f"{path} is a base of itself")
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ContextDiffusionError(f"cannot read the config {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ContextDiffusionError(f"{path} is not TOML: {error}") from error
    base = table.pop("base", None)
    if base is None:
        return table
    if not isinstance(base, str):
        raise ContextDiffusionError(f"{path}: base is {base!r}, expected the path of another config")
    return _on_top(_read(path.parent / base, (*readers, path.resolve())), table)


def _on_top(below: dict, above: dict) -> dict:
    """Both, `above` where they differ; tables are joined name by name."""
    joined = dict(below)
    for name, value in above.items():
        both = isinstance(value, dict) and isinstance(below.get(name), dict)
        joined[name] = _on_top(below[name], value) if both else value
    return joined
