"""Everything a run needs to go on after a kill, in one safetensors file written whole or not at all."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ..errors import ContextDiffusionError


def save_state(
    path: Path, module: nn.Module, ema: dict[str, Tensor], optimizer: torch.optim.Optimizer, step: int
) -> None:
    """Write weights, averaged weights, the optimizer's moments and the step.

    Args:
        path: the file; the old one stays until the new one is whole.
        module: what is trained.
        ema: parameter name -> averaged value.
        optimizer: over the module's parameters that require gradients.
        step: steps done.
    """
    tensors = {f"module.{name}": value.detach() for name, value in module.state_dict().items()}
    tensors.update({f"ema.{name}": value for name, value in ema.items()})
    for index, moments in optimizer.state_dict()["state"].items():
        tensors.update({f"optimizer.{index}.{name}": value for name, value in moments.items()})
    tensors = {name: value.contiguous().clone() for name, value in tensors.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_suffix(".tmp")
    save_file(tensors, scratch, metadata={"training_state": json.dumps({"step": step})})
    os.replace(scratch, path)


def load_state(path: Path, module: nn.Module, ema: dict[str, Tensor], optimizer: torch.optim.Optimizer) -> int:
    """Read back what `save_state` wrote, in place.

    Returns:
        The steps done.

    Raises:
        ContextDiffusionError: the file is damaged or belongs to another model.
    """
    try:
        with safe_open(path, "pt") as file:
            step = json.loads((file.metadata() or {})["training_state"])["step"]
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        parts: dict[str, dict] = {"module": {}, "ema": {}, "optimizer": {}}
        for name, value in tensors.items():
            part, _, rest = name.partition(".")
            parts[part][rest] = value
        module.load_state_dict(parts["module"])
        for name, value in ema.items():
            value.copy_(parts["ema"][name])
    except (SafetensorError, KeyError, RuntimeError, json.JSONDecodeError) as error:
        reason = str(error).splitlines()[0]
        raise ContextDiffusionError(
            f"cannot resume from {path}: {reason}; give another --out folder or remove the file to start anew"
        ) from error
    state: dict[int, dict] = {}
    for name, value in parts["optimizer"].items():
        index, _, moment = name.partition(".")
        state.setdefault(int(index), {})[moment] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return step
