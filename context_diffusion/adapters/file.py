"""An adapter as a module, from its file and back; and a pickle of one as a file that carries no code."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from ..checkpoint.header import open_tensors
from ..errors import ContextDiffusionError
from ..files import write_tensors
from .attention import VisualAttention
from .projections import new_projection
from .recognise import ATTENTION, PROJECTION, AdapterKind, recognise

Result = TypeVar("Result")


class ImageAdapter(nn.Module):
    """The two parts of an adapter.

    Attributes:
        kind: what it is.
        projection: features of an image encoder -> tokens (B, n, d_c), see `projections`.
        attention: keys and values for these tokens in every cross-attention of a UNet.
    """

    def __init__(self, kind: AdapterKind, projection: nn.Module, attention: VisualAttention) -> None:
        super().__init__()
        self.kind, self.projection, self.attention = kind, projection, attention


def read_kind(path: str | Path) -> AdapterKind:
    """What an adapter file is, from its header alone.

    Raises:
        ContextDiffusionError: no .safetensors file, or see `recognise`.
    """
    with open_tensors(path) as file:
        return _named(path, lambda: recognise({name: entry.shape for name, entry in file.tensors.items()}))


def read_adapter(path: str | Path) -> ImageAdapter:
    """An adapter from a file in the public format, its weights in the file's dtype on the CPU.

    Raises:
        ContextDiffusionError: no .safetensors file, damaged, or see `adapter_of`.
    """
    with open_tensors(path) as file:
        _named(path, lambda: recognise({name: entry.shape for name, entry in file.tensors.items()}))
        groups = dict.fromkeys(name.partition(".")[0] for name in file.tensors)
        tensors = {name: tensor for group in groups for name, tensor in file.read(group)}
    return _named(path, lambda: adapter_of(tensors))


def write_adapter(adapter: ImageAdapter, path: str | Path, dtype: torch.dtype = torch.float16) -> None:
    """An adapter as a .safetensors file in the public format, which other packs and diffusers read too.

    Raises:
        ContextDiffusionError: as `files.write_atomically`.
    """
    tensors = {name: tensor.to("cpu", dtype).contiguous() for name, tensor in tensors_of(adapter).items()}
    write_tensors(path, tensors)


def convert_pickle(path: str | Path, out: str | Path) -> AdapterKind:
    """A pickled adapter (.bin) as a .safetensors file. No code of the pickle is run.

    Args:
        path: what `torch.save` wrote of nested tables of tensors.
        out: ends in .safetensors.

    Returns:
        What it is.

    Raises:
        ContextDiffusionError: no such file, one that holds more than tables of tensors, or no adapter.
    """
    import pickle

    if Path(out).suffix != ".safetensors":
        raise ContextDiffusionError(f"{out} does not end in .safetensors: adapters are written in that format only")
    try:
        nested = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ContextDiffusionError(f"{path} cannot be read: {error.strerror or error}") from error
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        # Torch's own words say how to open it all the same.
        raise ContextDiffusionError(
            f"{path} is no pickle of tensors alone: only those are opened, since any other can run code"
        ) from error
    tensors = dict(_flat(path, nested))
    kind = _named(path, lambda: adapter_of(tensors)).kind
    # Every tensor in memory of its own, as the format asks.
    write_tensors(out, {name: tensor.clone().contiguous() for name, tensor in tensors.items()})
    return kind


def adapter_of(tensors: Mapping[str, Tensor]) -> ImageAdapter:
    """The adapter that a file's tensors are; it has them as its weights, in their dtype.

    Raises:
        ContextDiffusionError: see `recognise`; or weights that are missing, too many, or of a wrong shape. The message
            does not name the file.
    """
    kind = recognise({name: tuple(tensor.shape) for name, tensor in tensors.items()})
    own = {name[len(PROJECTION) :]: tensor for name, tensor in tensors.items() if name.startswith(PROJECTION)}
    with torch.device("meta"):
        projection = new_projection(kind, {name: tuple(tensor.shape) for name, tensor in own.items()})
        attention = VisualAttention(kind.text_width, kind.inner_widths)
    _fill("projection", projection, own)
    _fill("attention", attention, dict(_attention_weights(tensors)))
    return ImageAdapter(kind, projection, attention).eval().requires_grad_(False)


def tensors_of(adapter: ImageAdapter) -> dict[str, Tensor]:
    """The tensors of an adapter by the public format's names: `adapter_of` back."""
    tensors = {PROJECTION + name: tensor for name, tensor in adapter.projection.state_dict().items()}
    for name, tensor in adapter.attention.state_dict().items():
        which, layer, _ = name.split(".")
        tensors[f"{ATTENTION[0]}{2 * int(layer) + 1}.{which}_ip.weight"] = tensor
    return tensors


def _attention_weights(tensors: Mapping[str, Tensor]) -> list[tuple[str, Tensor]]:
    """The weights of `VisualAttention` by its own names."""
    weights = []
    for name, tensor in tensors.items():
        prefix = next((each for each in ATTENTION if name.startswith(each)), None)
        if prefix is None:
            continue
        number, _, rest = name[len(prefix) :].partition(".")
        layer = (int(number) - 1) // 2
        weights.append((rest.replace("_ip.", f".{layer}."), tensor))
    return weights


def _fill(what: str, module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    wanted = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    for name in sorted({*wanted, *weights}):
        got = tuple(weights[name].shape) if name in weights else None
        if got != wanted.get(name):
            there = "missing" if got is None else f"{list(got)}"
            expected = f"expected {list(wanted[name])}" if name in wanted else "which such an adapter does not have"
            raise ContextDiffusionError(
                f"its {what} weight {name} is {there}, {expected}: the file is damaged or not whole"
            )
    module.load_state_dict(weights, assign=True)


def _flat(path: str | Path, nested: object, prefix: str = "") -> list[tuple[str, Tensor]]:
    """Nested tables of tensors as one, names joined by dots."""
    if isinstance(nested, Tensor):
        return [(prefix, nested)]
    if not isinstance(nested, Mapping):
        raise ContextDiffusionError(
            f"{path}: {prefix or 'its content'} is {type(nested).__name__}, expected tables of tensors: no adapter"
        )
    dot = f"{prefix}." if prefix else ""
    return [pair for name, value in nested.items() for pair in _flat(path, value, f"{dot}{name}")]


def _named(path: str | Path, make: Callable[[], Result]) -> Result:
    """What `make` gives; its errors name the file."""
    try:
        return make()
    except ContextDiffusionError as error:
        raise ContextDiffusionError(f"{path}: {error}") from error
