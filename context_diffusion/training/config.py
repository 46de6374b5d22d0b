"""Training configuration: one TOML file a stage, checked before anything is loaded."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path

from ..choices import PRECISIONS
from ..errors import ContextDiffusionError
from .settings import ANYTHING, RUN_RANGES, SETTINGS, Kind

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

STAGES = ("vae", "clip", "diffusion")


@dataclass
class RunConfig:
    """What every stage shares.

    Attributes:
        stage: `vae`, `clip` or `diffusion`.
        data: folder that `context-diffusion data emoji` wrote.
        out: folder for weights, resume state, logs and sample grids.
        steps: optimizer steps in all.
        batch_size: unique images a step and process.
        learning_rate: peak of the cosine schedule.
        final_learning_rate: its end, as a share of the peak.
        warmup_steps: linear warm-up.
        weight_decay: decoupled, of the weight matrices.
        grad_clip: largest gradient norm.
        ema_decay: decay of the averaged weights, which are the stage's result.
        precision: `fp32`, `bf16` (autocast) or `bf16_matmul` (linear and convolution layers alone in bf16: the fast
            one on a CPU with bf16 instructions).
        seed: of weights, batches and noise.
        processes: batches a step, whose gradients are averaged: one a process, see `placement.started_processes`.
        threads: CPU threads a process.
        log_every, save_every, sample_every: in steps; 0 means never.
        settings: the stage's own table, [vae], [clip] or [diffusion].
    """

    stage: str
    data: str
    out: str
    steps: int
    batch_size: int
    learning_rate: float
    final_learning_rate: float = 0.05
    warmup_steps: int = 100
    weight_decay: float = 0.0
    grad_clip: float = 1.0
    ema_decay: float = 0.999
    precision: str = "fp32"
    seed: int = 0
    processes: int = 1
    threads: int = 0
    log_every: int = 20
    save_every: int = 500
    sample_every: int = 500
    settings: dict = field(default_factory=dict)


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
    table = _read(path)
    run = dict(_table(path, "run", table.get("run", {})))
    run.update({name: value for name, value in (overrides or {}).items() if value is not None})
    known = {item.name: item for item in fields(RunConfig) if item.name != "settings"}
    _check_names(path, "run", run, known)
    for name, value in run.items():
        wanted = {"str": str, "int": int, "float": (int, float)}[known[name].type]
        if not isinstance(value, wanted) or isinstance(value, bool):
            raise ContextDiffusionError(f"{path}: {name} is {value!r}, expected a value of type {known[name].type}")
    missing = [name for name in ("stage", "data", "out", "steps", "batch_size", "learning_rate") if name not in run]
    if missing:
        raise ContextDiffusionError(f"{path}: [run] lacks {', '.join(missing)}")
    for name, choices in (("stage", STAGES), ("precision", PRECISIONS)):
        if run.get(name, choices[0]) not in choices:
            raise ContextDiffusionError(f"{path}: {name} is {run[name]!r}, choose one of {', '.join(choices)}")
    for name, kind in RUN_RANGES.items():
        if name in run:
            _check_value(path, name, run[name], kind)
    unknown = set(table) - {"run", run["stage"]}
    if unknown:
        raise ContextDiffusionError(f"{path}: unknown table [{min(unknown)}]; expected [run] and [{run['stage']}]")
    stage = run["stage"]
    settings = _table(path, stage, table.get(stage, {}))
    _check_settings(path, stage, settings, SETTINGS[stage])
    return RunConfig(**run, settings=settings)


def _read(path: Path, readers: tuple[Path, ...] = ()) -> dict:
    """The tables of a file on top of those of its bases."""
    if path.resolve() in readers:
        raise ContextDiffusionError(f"{path} is a base of itself")
    try:
        table = tomllib.loads(path.read_text())
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


def _check_settings(path: Path, table: str, found: dict, known: Mapping[str, Kind | dict[str, Kind]]) -> None:
    """Names and values of a stage's table, and of the tables in it."""
    _check_names(path, table, found, known)
    for name, value in found.items():
        kind = known[name]
        if isinstance(kind, Kind):
            _check_value(path, f"[{table}] {name}", value, kind)
        else:
            inner = _table(path, f"{table}.{name}", value)
            if kind is not ANYTHING:
                _check_settings(path, f"{table}.{name}", inner, kind)


def _check_value(path: Path, name: str, value: object, kind: Kind) -> None:
    if not kind.fits(value):
        raise ContextDiffusionError(f"{path}: {name} is {value!r}, expected {kind.words}")


def _table(path: Path, name: str, value: object) -> dict:
    if not isinstance(value, dict):
        raise ContextDiffusionError(f"{path}: {name} is {value!r}, expected a table [{name}]")
    return value


def _check_names(path: Path, table: str, found: Iterable[str], known: Iterable[str]) -> None:
    """Refuse a name that nothing would read: a slip of the pen must not train with the default."""
    known = list(known)
    for name in found:
        if name not in known:
            nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
            raise ContextDiffusionError(
                f"{path}: [{table}] has no setting {name!r}, the nearest is {nearest!r}; it has {', '.join(known)}"
            )
