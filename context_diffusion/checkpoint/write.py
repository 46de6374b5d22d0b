"""One ContextDiffusion -> one .safetensors file."""

from __future__ import annotations

import datetime
import json
import logging
from pathlib import Path

import torch
from torch import Tensor

from ..errors import ContextDiffusionError
from ..files import parse_json, write_tensors
from ..model.context_diffusion import ContextDiffusion
from .header import CHECKSUM_KEY, DTYPES, LARGEST_HEADER, checksums
from .native import check_native_limits
from .parts import describe_part, file_keys, misfits, present_parts
from .read import CONFIG_KEY, FORMAT_VERSION, TOKENIZER_KEY
from .tokenizer import tokenizer_to_json

logger = logging.getLogger(__name__)

ARCHITECTURE = "context-diffusion-v1"

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


def save_checkpoint(model: ContextDiffusion, path: str | Path, dtype: torch.dtype | None = None) -> Path:
    """Write a model as one .safetensors file, whole or not at all.

    What was there before stays until the new file is complete (see `files.write_atomically`). The file carries a
    checksum, which every reader compares. A model that ComfyUI's own classes cannot run (see `check_native_limits`)
    is saved with a warning, since it works everywhere else.

    Args:
        model: its parts, schedule, info and tokenizer are written; parts that are None are left out.
        path: ends in .safetensors; its folder is made when it is not there.
        dtype: of the floating-point weights in the file; None keeps each weight's own.

    Returns:
        The path.

    Raises:
        ContextDiffusionError: a wrong suffix, weights that are not finite (in `dtype`) or of another dtype than
            float32, float16 or bfloat16, parts that do not fit each other, info that JSON cannot hold, or a folder
            that cannot be written.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ContextDiffusionError(f"{path} does not end in .safetensors: a checkpoint is written in that format only")
    problems = misfits(model)
    if problems:
        raise ContextDiffusionError(f"{path} is not saved: {problems[0]}")
    limits = check_native_limits(model)
    if limits:
        logger.warning("%s will not load as native ComfyUI objects: %s", path.name, "; ".join(limits))
    metadata, tensors = _metadata(model), _tensors(model, dtype)
    if sum(map(len, metadata.values())) > LARGEST_HEADER // 2:
        raise ContextDiffusionError(f"{path} is not saved: its info is too long for a file's header, make it shorter")
    write_tensors(path, tensors, metadata | {CHECKSUM_KEY: checksums(metadata, tensors)})
    return path


def _metadata(model: ContextDiffusion) -> dict[str, str]:
    config = {"format_version": FORMAT_VERSION}
    config |= {name: describe_part(name, module) for name, module in present_parts(model).items()}
    if model.reading.changes:
        config["variant"] = dict(model.reading.changes)
    config |= {"schedule": model.schedule, "info": model.info}
    try:
        metadata = {CONFIG_KEY: json.dumps(config)}
        parse_json(metadata[CONFIG_KEY])  # what would not be read is not written
    except (TypeError, ValueError, RecursionError) as error:
        raise ContextDiffusionError(f"the model's info or schedule does not go into JSON: {error}") from error
    if model.tokenizer is not None:
        metadata[TOKENIZER_KEY] = tokenizer_to_json(model.tokenizer)
    today = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
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
            if tensor.dtype not in DTYPES.values():
                raise ContextDiffusionError(f"{key} is of {tensor.dtype}: give a dtype, such as torch.float32")
            if not torch.isfinite(tensor).all():
                raise ContextDiffusionError(f"{key} is not finite in {tensor.dtype}: the model is not saved")
            # safetensors refuses tied weights and views: each gets its own copy.
            storage = tensor.untyped_storage()
            if storage.data_ptr() in seen or storage.nbytes() != tensor.numel() * tensor.element_size():
                tensor = tensor.clone()
            seen.add(tensor.untyped_storage().data_ptr())
            tensors[key] = tensor
    return tensors
