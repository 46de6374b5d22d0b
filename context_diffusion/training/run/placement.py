"""Where a run computes: how many GPUs there are, how many processes that makes, and batches on their device."""

from __future__ import annotations

import os

import torch
from torch import Tensor


def accelerator_count() -> int:
    """GPUs that a run may use, Apple's counting as one; 0 where accelerate is told to keep to the CPU."""
    if os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes", "y", "on", "t"):
        return 0
    if torch.cuda.is_available():
        return torch.cuda.device_count()
    return int(torch.backends.mps.is_available())


def started_processes(batches: int) -> int:
    """How many processes share the batches of a step.

    On CPUs one each. No two can be on one GPU: as many as there are GPUs to share the batches evenly, so that a
    process may have several of them one after another. The gradients are the same.

    Args:
        batches: `RunConfig.processes`.
    """
    devices = accelerator_count()
    if not devices:
        return batches
    return max(count for count in range(1, batches + 1) if batches % count == 0 and count <= devices)


def to_device(batch: dict, device: torch.device) -> dict:
    """A stage's batch with its tensors on the device that the module is on."""
    return {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}
