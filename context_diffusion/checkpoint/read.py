"""One .safetensors file -> one ContextDiffusion."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from ..errors import ContextDiffusionError
from ..model.context_diffusion import PREDICTION_TYPES, ContextDiffusion
from ..model.reading import Reading
from .header import Header, TensorEntry, read_header
from .parts import (
    PARTS,
    build_part,
    check_config,
    check_known,
    file_keys,
    fill_buffers,
    misfits,
    model_class,
)
from .tokenizer import tokenizer_from_json

FORMAT_VERSION = 1

CONFIG_KEY = "context_diffusion.config"
TOKENIZER_KEY = "context_diffusion.tokenizer"

_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def load_checkpoint(
    path: str | Path, device: str | torch.device = "cpu", dtype: torch.dtype | None = None
) -> ContextDiffusion:
    """Read a model from a .safetensors file that `save_checkpoint` wrote. Strict: all or an error.

    Args:
        path: the file.
        device: where the weights go.
        dtype: of the floating-point weights; None keeps what the file has.

    Returns:
        The model in evaluation mode.

    Raises:
        ContextDiffusionError: the file is missing, empty, truncated, a pickle, of another origin or version;
            keys are missing or too many; shapes are wrong; weights are not finite; parts do not fit.
    """
    path = Path(path)
    header = read_header(path)
    config = read_config(path, header)
    try:
        reading = Reading.of(config.get("variant", {}))
        parts = {name: build_part(name, config[name], reading) for name in PARTS if config.get(name) is not None}
        text = header.metadata.get(TOKENIZER_KEY)
        tokenizer = None if text is None else tokenizer_from_json(text)
    except ContextDiffusionError as error:
        raise ContextDiffusionError(f"{path}: {error}") from error
    _check_keys(path, parts, header.tensors)
    _fill(path, parts, torch.device(device), dtype)
    schedule, info = config.get("schedule"), config.get("info")
    unet, projector = parts.pop("unet"), parts.pop("projector", None)
    model = model_class(config)(
        unet, projector, **parts, tokenizer=tokenizer, schedule=schedule, info=info, reading=reading
    )
    problems = misfits(model)
    if problems:
        raise ContextDiffusionError(f"{path}: {problems[0]}")
    return model.eval()


def read_metadata(path: str | Path) -> dict[str, Any]:
    """What a checkpoint says about itself, without reading its tensors.

    Returns:
        path, size (bytes), format_version, modelspec (title, license ...), config (of each part), variant (what
        is not the default's), schedule, info, tokens (of the tokenizer, or None), parts (name -> parameters and
        dtypes), parameters (in all).

    Raises:
        ContextDiffusionError: as `load_checkpoint`, for what the header shows.
    """
    header = read_header(path)
    config = read_config(Path(path), header)
    parts: dict[str, dict[str, Any]] = {}
    for key, entry in header.tensors.items():
        part = parts.setdefault(key.partition(".")[0], {"parameters": 0, "dtypes": []})
        part["parameters"] += entry.elements
        dtype = _DTYPES.get(entry.dtype, entry.dtype)
        if dtype not in part["dtypes"]:
            part["dtypes"].append(dtype)
    text = header.metadata.get(TOKENIZER_KEY)
    start = "modelspec."
    return {
        "path": str(path),
        "size": header.size,
        "format_version": config["format_version"],
        "modelspec": {key[len(start) :]: v for key, v in sorted(header.metadata.items()) if key.startswith(start)},
        "config": {name: config[name] for name in PARTS if config.get(name) is not None},
        "variant": config.get("variant", {}),
        "schedule": config.get("schedule") or {},
        "info": config.get("info") or {},
        "tokens": None if text is None else _count_tokens(Path(path), text),
        "parts": {name: parts[name] for name in PARTS if name in parts},
        "parameters": sum(part["parameters"] for part in parts.values()),
    }


def read_config(path: Path, header: Header) -> dict[str, Any]:
    """The whole config of a checkpoint: format_version, a table for each part, schedule, info.

    Raises:
        ContextDiffusionError: as `load_checkpoint`, for what the header shows.
    """
    text = header.metadata.get(CONFIG_KEY)
    if text is None:
        first = next(iter(sorted(header.tensors)), "no tensor at all")
        raise ContextDiffusionError(
            f"{path} is of another origin (no Context Diffusion metadata, first key {first}): "
            "give a file that Context Diffusion saved; ContextDiffusion.from_stable_diffusion makes one of a Stable "
            "Diffusion folder"
        )
    try:
        config = json.loads(text)
    except json.JSONDecodeError as error:
        raise ContextDiffusionError(f"{path} has a config that is not JSON ({error}): save it again") from error
    version = config.get("format_version") if isinstance(config, dict) else None
    if version != FORMAT_VERSION:
        raise ContextDiffusionError(
            f"{path} has format version {version} and this release reads {FORMAT_VERSION}: "
            "use the release that wrote it"
        )
    try:
        check_known(config)
    except ContextDiffusionError as error:
        raise ContextDiffusionError(f"{path}: {error}") from error
    absent = [name for name in model_class(config).needed_parts if config.get(name) is None]
    if absent:
        raise ContextDiffusionError(f"{path} has no config of its {' and '.join(absent)}: save it again")
    for name in PARTS:
        if config.get(name) is None:
            continue
        try:
            check_config(name, config[name])
        except ContextDiffusionError as error:
            raise ContextDiffusionError(f"{path}: {error}: save it again") from error
    for name in ("schedule", "info"):
        if not isinstance(config.get(name, {}), dict):
            raise ContextDiffusionError(f"{path} has a {name} that is not a table: save it again")
    prediction = config.get("schedule", {}).get("prediction_type", "epsilon")
    if prediction not in PREDICTION_TYPES:
        raise ContextDiffusionError(
            f"{path} has prediction_type {prediction!r}, not one of {', '.join(PREDICTION_TYPES)}"
        )
    return config


def _count_tokens(path: Path, text: str) -> int:
    try:
        return len(json.loads(text)["tokens"])
    except (ValueError, TypeError, KeyError) as error:
        raise ContextDiffusionError(f"{path} has a tokenizer that cannot be read ({error}): save it again") from error


def _check_keys(path: Path, parts: dict[str, torch.nn.Module], entries: dict[str, TensorEntry]) -> None:
    wanted = {}
    for name, module in parts.items():
        weights = module.state_dict()
        wanted |= {key: tuple(weights[own_key].shape) for key, own_key in file_keys(name, module).items()}
    missing = sorted(set(wanted) - set(entries))
    extra = sorted(set(entries) - set(wanted))
    shapes = [
        f"{key} is {list(entries[key].shape)}, not {list(shape)}"
        for key, shape in sorted(wanted.items())
        if key in entries and entries[key].shape != shape
    ]
    problems = [f"{len(missing)} missing ({_some(missing)})"] if missing else []
    problems += [f"{len(extra)} that its config does not know ({_some(extra)})"] if extra else []
    problems += [f"{len(shapes)} of a wrong shape ({_some(shapes)})"] if shapes else []
    if problems:
        raise ContextDiffusionError(f"{path} does not hold the tensors its config asks for: {', '.join(problems)}")


def _some(items: list[str]) -> str:
    return ", ".join(items[:3]) + (", ..." if len(items) > 3 else "")


def _fill(path: Path, parts: dict[str, torch.nn.Module], device: torch.device, dtype: torch.dtype | None) -> None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            for name, module in parts.items():
                weights = {}
                for key, own_key in file_keys(name, module).items():
                    # A copy, or the model would hang on the open file: Windows could not replace it.
                    tensor = file.get_tensor(key)
                    if not torch.isfinite(tensor).all():
                        raise ContextDiffusionError(f"{path}: {key} holds NaN or infinite values, it cannot be used")
                    weights[own_key] = tensor.to(device, dtype if tensor.is_floating_point() else None, copy=True)
                module.load_state_dict(weights, assign=True)
                fill_buffers(module)
                module.to(device)
    except (OSError, SafetensorError) as error:
        raise ContextDiffusionError(f"{path} cannot be read: {error}") from error
