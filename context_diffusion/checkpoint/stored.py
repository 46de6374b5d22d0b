"""A checkpoint as it lies in its file: configs and weights by part, nothing built.

For those who fill networks of their own with it, as ComfyUI does. Needs neither diffusers nor transformers.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import ContextDiffusionError
from ..model.context_diffusion import DEFAULT_SCHEDULE
from .header import read_header
from .native import find_native_limits
from .parts import PARTS, find_misfits
from .read import TOKENIZER_KEY, read_config


@dataclass(frozen=True)
class StoredModel:
    """What a checkpoint holds.

    Attributes:
        path: the file.
        configs: of each part that the file has, as `parts.describe_part` gives them.
        weights: of each part that was asked for, by their names in diffusers or transformers 4.
        schedule: as `ContextDiffusion.schedule`.
        info: as `ContextDiffusion.info`.
        tokenizer: for `tokenizer.tokenizer_from_json`, or None.
        limits: what keeps it from becoming native ComfyUI objects, see `checkpoint.native`.
    """

    path: Path
    configs: dict[str, dict[str, Any]]
    weights: dict[str, dict[str, Tensor]]
    schedule: dict[str, Any]
    info: dict[str, Any]
    tokenizer: str | None
    limits: list[str]


def read_stored(path: str | Path, parts: Collection[str] = PARTS) -> StoredModel:
    """Read a checkpoint, with the weights of some of its parts.

    Whether the weights are those that the configs ask for is for the one to check who builds the networks.

    Args:
        path: the file.
        parts: whose weights to read; parts that the file lacks are left out.

    Returns:
        The model; its weights are copies in memory, on the CPU, in the file's dtype.

    Raises:
        ContextDiffusionError: the file is missing, damaged, of another origin or version; its parts do not fit
            each other; a weight that is read is not finite.
    """
    path = Path(path)
    header = read_header(path)
    config = read_config(path, header)
    configs = {name: config[name] for name in PARTS if config.get(name) is not None}
    schedule = {**DEFAULT_SCHEDULE, **(config.get("schedule") or {})}
    text = header.metadata.get(TOKENIZER_KEY)
    try:
        tokenizer = None if text is None else json.loads(text)
        special = tokenizer and (tokenizer["pad_token"], tokenizer["eos_token"])
        problems = find_misfits(configs, tokenizer and len(tokenizer["tokens"]))
        limits = find_native_limits(configs, schedule, special, config.get("variant"))
    except KeyError as error:
        raise ContextDiffusionError(f"{path} has a config that lacks {error}: save it again") from error
    except (ValueError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())
        raise ContextDiffusionError(f"{path} has a config that cannot be read ({reason}): save it again") from error
    if problems:
        raise ContextDiffusionError(f"{path}: {problems[0]}")
    strange = sorted(key for key in header.tensors if key.partition(".")[0] not in configs)
    if strange:
        raise ContextDiffusionError(
            f"{path} holds {strange[0]}, of a part that its config does not have: save it again"
        )
    weights = _read_weights(path, [name for name in configs if name in parts])
    return StoredModel(path, configs, weights, schedule, config.get("info") or {}, text, limits)


def _read_weights(path: Path, parts: list[str]) -> dict[str, dict[str, Tensor]]:
    from safetensors import SafetensorError, safe_open

    weights: dict[str, dict[str, Tensor]] = {name: {} for name in parts}
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            for key in file.keys():
                name, _, rest = key.partition(".")
                if name not in weights:
                    continue
                # A copy, or the model would hang on the open file: Windows could not replace it.
                tensor = file.get_tensor(key).clone()
                if not torch.isfinite(tensor).all():
                    raise ContextDiffusionError(f"{path}: {key} holds NaN or infinite values, it cannot be used")
                weights[name][rest] = tensor
    except (OSError, SafetensorError) as error:
        raise ContextDiffusionError(f"{path} cannot be read: {error}") from error
    return weights
