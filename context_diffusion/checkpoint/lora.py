"""LoRA files: low-rank changes of a UNet's and a text encoder's weights, in kohya's names, which hosts load too.

LAYER.lora_up.weight (out, r) and LAYER.lora_down.weight (r, in) add alpha / r * up @ down to a layer's weight, where
LAYER is `lora_unet_` or `lora_te_` and the layer's name in diffusers or transformers with "_" for each dot.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from ..errors import ContextDiffusionError
from ..files import write_tensors
from .header import CHECKSUM_KEY, checksums, open_tensors
from .parts import file_keys

_PREFIXES = {"unet": "lora_unet_", "text_encoder": "lora_te_"}
_ENDS = (".lora_up.weight", ".lora_down.weight", ".alpha")


class Adapted(Protocol):
    """What a LoRA changes: a `ContextDiffusion` or a pipeline."""

    unet: nn.Module
    text_encoder: nn.Module | None


@torch.no_grad()
def apply_lora(model: Adapted, path: str | os.PathLike[str], strength: float = 1.0) -> None:
    """Add a LoRA to a model's weights, in place: all of it or, where it does not fit, nothing.

    Args:
        model: the model or pipeline whose weights are changed.
        path: the file.
        strength: factor of the change; the same file at the negative strength takes it away again, to rounding.

    Raises:
        ContextDiffusionError: the file cannot be read or is no LoRA, or it has layers or shapes that the model has not.
    """
    path = Path(path)
    weights = lora_names(model)
    tensors = _read(path)
    layers = {_layer(name) for name in tensors if name.endswith(_ENDS)}
    strange = sorted(name for name in tensors if not name.endswith(_ENDS)) or sorted(layers - weights.keys())
    if strange or not layers:
        raise ContextDiffusionError(
            f"{path} is no LoRA of this model ({len(strange)} names that it does not have, such as "
            f"{strange[0]}): give one that was trained on it"
            if strange
            else f"{path} is no LoRA: it holds no tensors"
        )
    changes = {}
    for layer in sorted(layers):
        up, down, alpha = (tensors.get(f"{layer}{end}") for end in _ENDS)
        weight = weights[layer]
        if up is None or down is None:
            raise ContextDiffusionError(f"{path}: {layer} lacks its lora_up or lora_down: save the file again")
        rank, (out, width) = down.shape[0] if down.ndim > 1 else 0, weight.flatten(1).shape
        if not rank or up.numel() != out * rank or down.numel() != rank * width or up.shape[:2] != (out, rank):
            raise ContextDiffusionError(
                f"{path}: {layer} is {list(up.shape)} by {list(down.shape)} and the model's weight "
                f"{list(weight.shape)}: give a LoRA that was trained on this model"
            )
        if alpha is not None and alpha.numel() != 1:
            raise ContextDiffusionError(f"{path}: {layer}.alpha is {list(alpha.shape)}, expected one number")
        scale = strength * (1.0 if alpha is None else float(alpha) / rank)
        changes[layer] = (up.float().flatten(1) @ down.float().flatten(1)).reshape(weight.shape) * scale
        if not torch.isfinite(changes[layer]).all():
            raise ContextDiffusionError(f"{path}: {layer} is too large at strength {strength}: give a smaller one")
    for layer, change in changes.items():
        weight = weights[layer]
        weight.copy_(weight.float() + change.to(weight.device))


def save_lora(
    path: str | os.PathLike[str], layers: Mapping[str, tuple[Tensor, Tensor]], metadata: Mapping[str, str]
) -> None:
    """Write a LoRA in fp16, whole or not at all; its alpha is its rank.

    Args:
        path: the file.
        layers: name of a layer as in `lora_names` -> up (out, r) and down (r, in); of a 1 x 1 convolution likewise.
        metadata: what the file says of itself.

    Raises:
        ContextDiffusionError: the file cannot be written.
    """
    tensors = {}
    for layer, (up, down) in layers.items():
        for end, value in zip(_ENDS, (up, down, torch.tensor(float(up.shape[1]))), strict=True):
            tensors[f"{layer}{end}"] = value.detach().half().cpu().clone().contiguous()
    rank = str(next(iter(layers.values()))[0].shape[1])
    network = {"ss_network_module": "networks.lora", "ss_network_dim": rank, "ss_network_alpha": rank}
    metadata = {**network, **metadata}
    write_tensors(path, tensors, metadata | {CHECKSUM_KEY: checksums(metadata, tensors)})


def lora_names(model: Adapted) -> dict[str, Tensor]:
    """Layer in kohya's names -> its weight, for every weight of two dimensions or more."""
    names = {}
    for part, prefix in _PREFIXES.items():
        module = getattr(model, part, None)
        if module is None:
            continue
        state = module.state_dict(keep_vars=True)
        for key, own_key in file_keys(part, module).items():
            if key.endswith(".weight") and state[own_key].ndim > 1:
                layer = key.removeprefix(f"{part}.").removesuffix(".weight")
                names[prefix + layer.replace(".", "_")] = state[own_key]
    return names


def _read(path: Path) -> dict[str, Tensor]:
    with open_tensors(path) as file:
        return {name: value for layer in {_layer(name) for name in file.tensors} for name, value in file.read(layer)}


def _layer(name: str) -> str:
    return name.partition(".")[0]
