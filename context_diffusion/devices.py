"""Which device and which number format to compute with."""

from __future__ import annotations

import os

import torch

from .errors import ContextDiffusionError

DEVICE_VARIABLE = "CONTEXT_DIFFUSION_DEVICE"

_DTYPES = {
    "fp32": torch.float32,
    "float32": torch.float32,
    "fp16": torch.float16,
    "float16": torch.float16,
    "half": torch.float16,
    "bf16": torch.bfloat16,
    "bfloat16": torch.bfloat16,
}


def pick_device(prefer: str | torch.device | None = None) -> torch.device:
    """The device to compute on: CUDA, else MPS, else CPU, unless one is asked for.

    Args:
        prefer: a device such as `cuda`, `cuda:1`, `mps` or `cpu`. None or `auto` takes the environment
            variable CONTEXT_DIFFUSION_DEVICE where it is set, else the best one there is.

    Returns:
        A device that is present.

    Raises:
        ContextDiffusionError: the device asked for is unknown or not there.
    """
    source = "device"
    if prefer is None or prefer == "auto":
        prefer = os.environ.get(DEVICE_VARIABLE, "").strip() or "auto"
        source = DEVICE_VARIABLE
    if prefer == "auto":
        return torch.device(_available()[0])
    there = ", ".join(_available())
    try:
        device = torch.device(prefer)
    except (RuntimeError, TypeError) as error:
        raise ContextDiffusionError(
            f"{source} is {prefer!r}, which PyTorch does not know; use one of: auto, {there}"
        ) from error
    backend = torch if device.type == "cpu" else getattr(torch, device.type, None)
    if device.type == "mps":
        present = torch.backends.mps.is_available()
    else:
        present = device.type == "cpu" or bool(backend and backend.is_available())
    if not present:
        raise ContextDiffusionError(
            f"{source} is {str(device)!r}, which this PyTorch cannot use here; use one of: auto, {there}"
        )
    count = backend.device_count() if device.type not in ("cpu", "mps") else 1
    if device.index is not None and device.index >= count:
        raise ContextDiffusionError(
            f"{source} is {str(device)!r}, but there is only {count} of type {device.type}, counted from 0"
        )
    return device


def pick_dtype(device: str | torch.device, prefer: str | torch.dtype | None = None) -> torch.dtype:
    """The number format to compute in on a device.

    bfloat16 on CUDA where the hardware has it (it cannot overflow where float32 does not), else float16;
    float32 on CPU, where half precision is slower, and on MPS, where float16 attention overflows to
    black images.

    Args:
        device: what `pick_device` returned.
        prefer: a torch dtype or its name (`fp32`, `fp16`, `bf16`, `float32` ...); None or `auto` decides
        as above.

    Returns:
        float32, float16 or bfloat16.

    Raises:
        ContextDiffusionError: any other format.
    """
    if prefer is not None and prefer != "auto":
        dtype = _DTYPES.get(prefer.lower().removeprefix("torch.")) if isinstance(prefer, str) else prefer
        if dtype is None or dtype not in _DTYPES.values():
            raise ContextDiffusionError(f"dtype is {prefer!r}; use one of: auto, fp32, fp16, bf16")
        return dtype
    device = torch.device(device)
    if device.type != "cuda":
        return torch.float32
    # From compute capability 8 on; earlier cards emulate it slowly. AMD cards report through the same call.
    native = torch.cuda.get_device_capability(device)[0] >= 8
    return torch.bfloat16 if native and torch.cuda.is_bf16_supported() else torch.float16


def _available() -> list[str]:
    """Device types that work here, the best first."""
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    return [name for name in present if present[name]]
