"""Training configuration: one TOML file a stage, checked before anything is loaded."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field, fields
from pathlib import Path

from ..errors import ContextDiffusionError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

STAGES = ("vae", "clip", "diffusion")
PRECISIONS = ("fp32", "bf16")


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
        precision: `fp32` or `bf16` (autocast).
        seed: of weights, batches and noise.
        processes: data-parallel processes; gradients are averaged.
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

    Args:
        path: the file; relative folders in it are taken from the current folder.
        overrides: values of the [run] table that replace the file's, None ones left out.

    Raises:
        ContextDiffusionError: unreadable file, unknown or missing names, or values of the wrong type or range.
    """
    path = Path(path)
    try:
        table = tomllib.loads(path.read_text())
    except OSError as error:
        raise ContextDiffusionError(f"cannot read the config {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ContextDiffusionError(f"{path} is not TOML: {error}") from error
    run = dict(table.get("run", {}))
    run.update({name: value for name, value in (overrides or {}).items() if value is not None})
    known = {item.name: item for item in fields(RunConfig) if item.name != "settings"}
    for name, value in run.items():
        if name not in known:
            raise ContextDiffusionError(f"{path}: [run] has no setting {name!r}; it has {', '.join(known)}")
        wanted = {"str": str, "int": int, "float": (int, float)}[known[name].type]
        if not isinstance(value, wanted) or isinstance(value, bool):
            raise ContextDiffusionError(f"{path}: {name} is {value!r}, expected a value of type {known[name].type}")
    missing = [name for name in ("stage", "data", "out", "steps", "batch_size", "learning_rate") if name not in run]
    if missing:
        raise ContextDiffusionError(f"{path}: [run] lacks {', '.join(missing)}")
    for name, choices in (("stage", STAGES), ("precision", PRECISIONS)):
        if run.get(name, choices[0]) not in choices:
            raise ContextDiffusionError(f"{path}: {name} is {run[name]!r}, choose one of {', '.join(choices)}")
    for name in ("steps", "batch_size", "processes"):
        if run.get(name, 1) < 1:
            raise ContextDiffusionError(f"{path}: {name} is {run[name]}, it must be at least 1")
    unknown = set(table) - {"run", run["stage"]}
    if unknown:
        raise ContextDiffusionError(f"{path}: unknown table [{min(unknown)}]; expected [run] and [{run['stage']}]")
    return RunConfig(**run, settings=table.get(run["stage"], {}))
