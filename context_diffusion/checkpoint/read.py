"""One .safetensors file -> one ContextDiffusion."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..errors import ContextDiffusionError, brief
from ..files import parse_json
from ..model.context_diffusion import DEFAULT_SCHEDULE, PREDICTION_TYPES, ContextDiffusion
from ..model.reading import Reading
from .check_config import check_config
from .header import DTYPES, TensorEntry, TensorFile, open_tensors
from .parts import PARTS, build_part, check_known, class_of, file_keys, fill_buffers, find_misfits, model_class
from .saved import unpack_metadata
from .tokenizer import read_description, tokenizer_from_json

FORMAT_VERSION = 1

CONFIG_KEY = "context_diffusion.config"
TOKENIZER_KEY = "context_diffusion.tokenizer"

_MOST_TIMESTEPS = 100_000


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint, all that its header says of it checked; see `open_checkpoint`.

    Attributes:
        file: with the weights.
        configs: of each part that the file has, as `parts.describe_part` gives them.
        schedule: what the file says of `ContextDiffusion.schedule`.
        info: as `ContextDiffusion.info`.
        reading: as `ContextDiffusion.reading`.
        tokenizer: for `tokenizer.tokenizer_from_json`, or None.
        description: the tokenizer's, from `tokenizer.read_description`, or None.
    """

    file: TensorFile
    configs: dict[str, dict[str, Any]]
    schedule: dict[str, Any]
    info: dict[str, Any]
    reading: Reading
    tokenizer: str | None
    description: dict[str, Any] | None


@contextmanager
def open_checkpoint(path: str | os.PathLike[str]) -> Iterator[Checkpoint]:
    """Open a checkpoint and read its header, once; nothing is built, and no tensor is read yet.

    Raises:
        ContextDiffusionError: the file is missing, damaged, of another origin or version; a config asks for other
            counts and widths than its tensors have; parts do not fit each other.
    """
    with open_tensors(path) as file:
        unpack_metadata(file)
        config, reading = _read_config(file)
        try:
            checkpoint = _check(file, config, reading)
        except ContextDiffusionError as error:
            raise ContextDiffusionError(f"{file.path}: {error}: save it again") from error
        file.check_dtypes()
        yield checkpoint


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
            keys are missing or too many; shapes are wrong; weights are not finite, or not what was saved; parts do
            not fit.
    """
    with open_checkpoint(path) as checkpoint:
        try:
            parts = {name: build_part(name, config, checkpoint.reading) for name, config in checkpoint.configs.items()}
            tokenizer = None if checkpoint.tokenizer is None else tokenizer_from_json(checkpoint.tokenizer)
        except ContextDiffusionError as error:
            raise ContextDiffusionError(f"{path}: {error}") from error
        _check_keys(checkpoint.file.path, parts, checkpoint.file.tensors)
        for name, module in parts.items():
            keys, weights = file_keys(name, module), {}
            for key, tensor in checkpoint.file.read(name):
                weights[keys[key]] = tensor.to(device, dtype)
            module.load_state_dict(weights, assign=True)
            fill_buffers(module)
            module.to(device)
    unet, projector = parts.pop("unet"), parts.pop("projector", None)
    return model_class(checkpoint.configs)(
        unet,
        projector,
        **parts,
        tokenizer=tokenizer,
        schedule=checkpoint.schedule,
        info=checkpoint.info,
        reading=checkpoint.reading,
    ).eval()


def read_metadata(path: str | Path) -> dict[str, Any]:
    """What a checkpoint says about itself, without reading its tensors.

    Returns:
        path, size (bytes), format_version, modelspec (title, license ...), config (of each part), variant (what
        is not the default's), schedule, info, tokens (of the tokenizer, or None), parts (name -> parameters and
        dtypes), parameters (in all).

    Raises:
        ContextDiffusionError: as `load_checkpoint`, for what the header shows.
    """
    with open_checkpoint(path) as checkpoint:
        file = checkpoint.file
    parts: dict[str, dict[str, Any]] = {}
    for key, entry in file.tensors.items():
        part = parts.setdefault(key.partition(".")[0], {"parameters": 0, "dtypes": []})
        part["parameters"] += entry.elements
        dtype = str(DTYPES[entry.dtype]).removeprefix("torch.")
        if dtype not in part["dtypes"]:
            part["dtypes"].append(dtype)
    start = "modelspec."
    return {
        "path": str(path),
        "size": file.size,
        "format_version": FORMAT_VERSION,
        "modelspec": {key[len(start) :]: v for key, v in sorted(file.metadata.items()) if key.startswith(start)},
        "config": checkpoint.configs,
        "variant": dict(checkpoint.reading.changes),
        "schedule": checkpoint.schedule,
        "info": checkpoint.info,
        "tokens": checkpoint.description and len(checkpoint.description["tokens"]),
        "parts": {name: parts[name] for name in PARTS if name in parts},
        "parameters": sum(part["parameters"] for part in parts.values()),
    }


def _read_config(file: TensorFile) -> tuple[dict[str, Any], Reading]:
    """The whole config, format_version, a table for each part, schedule, info, and the reading that it asks for."""
    text = file.metadata.get(CONFIG_KEY)
    if text is None:
        first = min(file.tensors, default="no tensor at all")
        raise ContextDiffusionError(
            f"{file.path} is of another origin (no Context Diffusion metadata, first key {first}): "
            "give a file that Context Diffusion saved; ContextDiffusion.from_stable_diffusion makes one of a Stable "
            "Diffusion folder"
        )
    try:
        config = parse_json(text)
    except ContextDiffusionError as error:
        raise ContextDiffusionError(f"{file.path} has a config that cannot be read ({error}): save it again") from error
    version = config.get("format_version") if isinstance(config, dict) else None
    if type(version) is not int or version != FORMAT_VERSION:
        raise ContextDiffusionError(
            f"{file.path} has format version {brief(version)} and this release reads {FORMAT_VERSION}: "
            "use the release that wrote it"
        )
    try:
        return config, check_known(config)
    except ContextDiffusionError as error:
        raise ContextDiffusionError(f"{file.path}: {error}") from error


def _check(file: TensorFile, config: dict[str, Any], reading: Reading) -> Checkpoint:
    """All that can be known before anything is built. The errors do not name the file."""
    absent = [name for name in model_class(config).needed_parts if config.get(name) is None]
    if absent:
        raise ContextDiffusionError(f"there is no config of its {' and '.join(absent)}")
    configs = {name: config[name] for name in PARTS if config.get(name) is not None}
    shapes: dict[str, dict[str, tuple[int, ...]]] = {name: {} for name in configs}
    for key, entry in file.tensors.items():
        name, _, rest = key.partition(".")
        if name not in shapes:
            raise ContextDiffusionError(f"it holds {key}, of a part that its config does not know")
        shapes[name][rest] = entry.shape
    for name, own in configs.items():
        check_config(name, class_of(name, own), own, shapes[name])
    for name in ("schedule", "info"):
        if not isinstance(config.get(name) or {}, dict):
            raise ContextDiffusionError(f"the {name} is not a table")
    schedule, info = config.get("schedule") or {}, config.get("info") or {}
    _check_schedule({**DEFAULT_SCHEDULE, **schedule})
    text = file.metadata.get(TOKENIZER_KEY)
    description = None if text is None else read_description(text)
    try:
        problems = find_misfits(configs, description and len(description["tokens"]))
    except (KeyError, TypeError) as error:
        raise ContextDiffusionError(f"a config lacks {error}") from error
    if problems:
        raise ContextDiffusionError(problems[0])
    return Checkpoint(file, configs, schedule, info, reading, text, description)


def _check_schedule(schedule: Mapping[str, Any]) -> None:
    steps, prediction = schedule["num_train_timesteps"], schedule["prediction_type"]
    if prediction not in PREDICTION_TYPES:
        raise ContextDiffusionError(f"prediction_type is {brief(prediction)}, not one of {', '.join(PREDICTION_TYPES)}")
    if type(steps) is not int or not 1 <= steps <= _MOST_TIMESTEPS:
        raise ContextDiffusionError(
            f"num_train_timesteps is {brief(steps)}, not a whole number from 1 to {_MOST_TIMESTEPS}"
        )
    for name in ("beta_start", "beta_end"):
        if not isinstance(schedule[name], int | float) or not 0 < schedule[name] < 1:
            raise ContextDiffusionError(f"{name} is {brief(schedule[name])}, not a number between 0 and 1")
    for name, kind in (("beta_schedule", str), ("rescale_betas_zero_snr", bool)):
        if not isinstance(schedule[name], kind):
            raise ContextDiffusionError(f"{name} is {brief(schedule[name])}, not of type {kind.__name__}")


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
