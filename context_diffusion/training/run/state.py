"""Everything a run needs to go on after a kill, in one safetensors file written whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ...errors import ContextDiffusionError
from ...files import write_tensors
from ..config import RunConfig

# What a run may go on with changed: where things lie, and what the checkpoint says of itself.
_FREE = ("vae", "pool", "icons", "own", "feature_weights", "info")


def identity(config: RunConfig, more: dict[str, object]) -> dict[str, object]:
    """What makes a run another one, name -> value: going on with it changed would mix two runs.

    Steps, learning rate and the like are no part of it: a run may be made longer, or go on on another machine.

    Args:
        config: the run's.
        more: what the stage knows besides, such as the weights behind a path.
    """
    own = {f"[{config.stage}] {name}": value for name, value in config.settings.items() if name not in _FREE}
    values = {"stage": config.stage, "seed": config.seed, "batch_size": config.batch_size, **own, **more}
    # As they come back from the file: tuples as lists.
    return json.loads(json.dumps(values))


def save_state(
    path: Path,
    module: nn.Module,
    ema: dict[str, Tensor],
    optimizer: torch.optim.Optimizer,
    step: int,
    made_with: dict[str, object] | None = None,
) -> None:
    """Write weights, averaged weights, the optimizer's moments and the step.

    Args:
        path: the file; the old one stays until the new one is whole.
        module: what is trained.
        ema: parameter name -> averaged value.
        optimizer: over the module's parameters that require gradients.
        step: steps done.
        made_with: the run's `identity`.

    Raises:
        ContextDiffusionError: the folder is read-only or full.
    """
    tensors = {f"module.{name}": value.detach() for name, value in module.state_dict().items()}
    tensors.update({f"ema.{name}": value for name, value in ema.items()})
    for index, moments in optimizer.state_dict()["state"].items():
        tensors.update({f"optimizer.{index}.{name}": value for name, value in moments.items()})
    tensors = {name: value.contiguous().clone() for name, value in tensors.items()}
    write_tensors(path, tensors, {"training_state": json.dumps({"step": step, "made_with": made_with})})


def load_state(
    path: Path,
    module: nn.Module,
    ema: dict[str, Tensor],
    optimizer: torch.optim.Optimizer,
    made_with: dict[str, object] | None = None,
) -> int:
    """Read back what `save_state` wrote, in place.

    Args:
        path, module, ema, optimizer: as in `save_state`.
        made_with: this run's `identity`; None, or a state from before there was one, is not compared.

    Returns:
        The steps done.

    Raises:
        ContextDiffusionError: the file is damaged, or belongs to another model or a run with other settings.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            if "training_state" not in metadata:
                raise _cannot_resume(path, "it is no training state")
            saved = json.loads(metadata["training_state"])
            step, before = saved["step"], saved.get("made_with")
            if made_with and before:
                _check_identity(path, before, made_with)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        parts: dict[str, dict] = {"module": {}, "ema": {}, "optimizer": {}}
        for name, value in tensors.items():
            part, _, rest = name.partition(".")
            parts[part][rest] = value
        if parts["ema"].keys() != ema.keys():
            raise _cannot_resume(path, "it belongs to a model with other parts")
        module.load_state_dict(parts["module"])
        for name, value in ema.items():
            value.copy_(parts["ema"][name])
        moments: dict[int, dict] = {}
        for name, value in parts["optimizer"].items():
            index, _, moment = name.partition(".")
            moments.setdefault(int(index), {})[moment] = value
    except (SafetensorError, OSError, KeyError, TypeError, RuntimeError, json.JSONDecodeError) as error:
        raise _cannot_resume(path, str(error) or type(error).__name__) from error
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for index, state in moments.items():
        for name, value in state.items():
            if value.shape == parameters[index].shape:
                # In the parameter's memory layout, as the optimizer makes it: mixed layouts are slow in every step.
                state[name] = torch.empty_like(parameters[index]).copy_(value)
    optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
    return step


def _check_identity(path: Path, before: dict[str, object], now: dict[str, object]) -> None:
    changed = [
        f"{name} {before.get(name, 'not given')!r} (now {now.get(name, 'not given')!r})"
        for name in {**before, **now}
        if before.get(name) != now.get(name)
    ]
    if changed:
        raise _cannot_resume(path, f"the run was begun with {', '.join(changed)}")


def _cannot_resume(path: Path, reason: str) -> ContextDiffusionError:
    reason = " ".join(reason.split())
    return ContextDiffusionError(
        f"cannot resume from {path}: {reason[:300]}; give another --out folder or remove the file to start anew"
    )
