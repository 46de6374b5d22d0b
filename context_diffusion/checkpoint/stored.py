"""A checkpoint as it lies in its file: configs and weights by part, nothing built.

For those who fill networks of their own with it, as ComfyUI does. Needs neither diffusers nor transformers.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import ContextDiffusionError
from ..model.context_diffusion import DEFAULT_SCHEDULE
from .native import find_native_limits
from .parts import PARTS
from .read import Checkpoint, open_checkpoint


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
            each other; a weight that is read is not finite, or not what was saved.
    """
    with open_checkpoint(path) as checkpoint:
        schedule = {**DEFAULT_SCHEDULE, **checkpoint.schedule}
        limits = _limits(checkpoint, schedule)
        weights = {
            name: {key.partition(".")[2]: tensor for key, tensor in checkpoint.file.read(name)}
            for name in checkpoint.configs
            if name in parts
        }
    return StoredModel(
        checkpoint.file.path,
        checkpoint.configs,
        weights,
        schedule,
        checkpoint.info,
        checkpoint.tokenizer,
        limits,
    )


def _limits(checkpoint: Checkpoint, schedule: dict[str, Any]) -> list[str]:
    path, own = checkpoint.file.path, checkpoint.description
    special = own and (own["pad_token"], own["eos_token"])
    try:
        return find_native_limits(checkpoint.configs, schedule, special, checkpoint.reading.changes)
    except KeyError as error:
        raise ContextDiffusionError(f"{path} has a config that lacks {error}: save it again") from error
    except (ValueError, TypeError, AttributeError, ArithmeticError) as error:
        raise ContextDiffusionError(f"{path} has a config that cannot be read ({error}): save it again") from error
