"""One .safetensors file <-> one ContextDiffusion."""

from __future__ import annotations

import datetime
import json
import logging
import os
import secrets
import stat
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import ContextDiffusionError
from ..model.context_diffusion import PREDICTION_TYPES, ContextDiffusion
from ..model.variants import Variant
from .header import Header, TensorEntry, read_header
from .native import check_native_limits
from .parts import (
    PARTS,
    build_part,
    check_config,
    describe_part,
    file_keys,
    fill_buffers,
    misfits,
    needed_parts,
    present_parts,
)
from .tokenizer import tokenizer_from_json, tokenizer_to_json

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
ARCHITECTURE = "context-diffusion-v1"

_CONFIG_KEY = "context_diffusion.config"
TOKENIZER_KEY = "context_diffusion.tokenizer"

# Entries of `ContextDiffusion.info` that the field's model-card metadata has a name for.
_MODELSPEC = (
    "title",
    "license",
    "description",
    "author",
    "date",
    "tags",
    "usage_hint",
    "thumbnail",
    "merged_from",
)

_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def save_checkpoint(model: ContextDiffusion, path: str | Path, dtype: torch.dtype | None = None) -> Path:
    """Write a model as one .safetensors file, whole or not at all.

    The file is written beside its place, synced to disk and renamed: what was there before stays until the
    new file is complete. A model that ComfyUI's own classes cannot run (see `check_native_limits`) is saved
    with a warning, since it works everywhere else.

    Args:
        model: its parts, schedule, info and tokenizer are written; parts that are None are left out.
        path: ends in .safetensors; its folder is made when it is not there.
        dtype: of the floating-point weights in the file; None keeps each weight's own.

    Returns:
        The path.

    Raises:
        ContextDiffusionError: a wrong suffix, weights that are not finite (in `dtype`), parts that do not fit
            each other, info that JSON cannot hold, or a folder that cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    path = Path(path)
    if path.suffix != ".safetensors":
        raise ContextDiffusionError(f"{path} does not end in .safetensors: a checkpoint is written in that format only")
    if path.is_dir():
        raise ContextDiffusionError(f"{path} is a folder: give the name of a .safetensors file")
    problems = misfits(model)
    if problems:
        raise ContextDiffusionError(f"{path} is not saved: {problems[0]}")
    limits = check_native_limits(model)
    if limits:
        logger.warning("%s will not load as native ComfyUI objects: %s", path.name, "; ".join(limits))
    metadata, tensors = _metadata(model), _tensors(model, dtype)
    # A link to the file stays a link.
    target = Path(os.path.realpath(path))
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # safetensors makes files that only their owner reads: keep what the folder and the user ask for.
        temporary.touch()
        mode = stat.S_IMODE((target if target.exists() else temporary).stat().st_mode)
        save_file(tensors, temporary, metadata=metadata)
        _sync(temporary)
        temporary.chmod(mode)
        os.replace(temporary, target)
        _sync(target.parent)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ContextDiffusionError(f"{path} cannot be written: {reason}; choose another place or make room") from error
    finally:
        # After success it has its new name; where the folder could not be made there never was one.
        if temporary.exists():
            temporary.unlink()
    return path


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
        variant = Variant.of(config.get("variant", {}))
        parts = {name: build_part(name, config[name], variant) for name in PARTS if config.get(name) is not None}
        text = header.metadata.get(TOKENIZER_KEY)
        tokenizer = None if text is None else tokenizer_from_json(text)
    except ContextDiffusionError as error:
        raise ContextDiffusionError(f"{path}: {error}") from error
    _check_keys(path, parts, header.tensors)
    _fill(path, parts, torch.device(device), dtype)
    schedule, info = config.get("schedule"), config.get("info")
    unet, projector = parts.pop("unet"), parts.pop("projector", None)
    model = ContextDiffusion(
        unet, projector, **parts, tokenizer=tokenizer, schedule=schedule, info=info, variant=variant
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


def _metadata(model: ContextDiffusion) -> dict[str, str]:
    config = {"format_version": FORMAT_VERSION}
    config |= {name: describe_part(name, module) for name, module in present_parts(model).items()}
    if model.variant.changes():
        config["variant"] = model.variant.changes()
    config |= {"schedule": model.schedule, "info": model.info}
    try:
        metadata = {_CONFIG_KEY: json.dumps(config)}
    except (TypeError, ValueError) as error:
        raise ContextDiffusionError(f"the model's info or schedule does not go into JSON: {error}") from error
    if model.tokenizer is not None:
        metadata[TOKENIZER_KEY] = tokenizer_to_json(model.tokenizer)
    today = datetime.datetime.now(datetime.timezone.utc).date().isoformat()  # noqa: UP017, Python 3.10 has no UTC
    info = {"title": "Context Diffusion", "date": today, **model.info}
    spec = {name: str(info[name]) for name in _MODELSPEC if info.get(name)}
    spec |= {"sai_model_spec": "1.0.0", "architecture": ARCHITECTURE, "implementation": "diffusers"}
    resolution = info.get("resolution")
    if resolution:
        spec["resolution"] = resolution if isinstance(resolution, str) else f"{resolution}x{resolution}"
    prediction = model.schedule["prediction_type"]
    spec["prediction_type"] = {"v_prediction": "v"}.get(prediction, prediction)
    return metadata | {f"modelspec.{name}": value for name, value in spec.items()}


def _tensors(model: ContextDiffusion, dtype: torch.dtype | None) -> dict[str, Tensor]:
    """The weights by their names in the file: contiguous, on the CPU, no two in one piece of memory."""
    tensors: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, module in present_parts(model).items():
        weights = module.state_dict()
        for key, own_key in file_keys(name, module).items():
            tensor = weights[own_key].detach()
            tensor = tensor.to("cpu", dtype if tensor.is_floating_point() else None).contiguous()
            if not torch.isfinite(tensor).all():
                raise ContextDiffusionError(f"{key} is not finite in {tensor.dtype}: the model is not saved")
            # safetensors refuses tied weights and views: each gets its own copy.
            storage = tensor.untyped_storage()
            if storage.data_ptr() in seen or storage.nbytes() != tensor.numel() * tensor.element_size():
                tensor = tensor.clone()
            seen.add(tensor.untyped_storage().data_ptr())
            tensors[key] = tensor
    return tensors


def _sync(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on disk."""
    if path.is_dir() and os.name == "nt":
        return  # Windows opens no folders and keeps their order itself.
    flags = os.O_RDONLY if path.is_dir() else os.O_RDWR
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_config(path: Path, header: Header) -> dict[str, Any]:
    """The whole config of a checkpoint: format_version, a table for each part, schedule, info.

    Raises:
        ContextDiffusionError: as `load_checkpoint`, for what the header shows.
    """
    text = header.metadata.get(_CONFIG_KEY)
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
    absent = [name for name in needed_parts(config) if config.get(name) is None]
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
    try:
        Variant.of(config.get("variant", {}))
    except ContextDiffusionError as error:
        raise ContextDiffusionError(f"{path}: {error}: save it again, or use the release that wrote it") from error
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
