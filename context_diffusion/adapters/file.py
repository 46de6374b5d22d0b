"""An adapter as a module, from the tensors of its file and back."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from ..errors import ContextDiffusionError
from .attention import VisualAttention
from .projections import new_projection
from .recognise import ATTENTION, PROJECTION, AdapterKind, recognise


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


def adapter_of(tensors: Mapping[str, Tensor]) -> ImageAdapter:
    """The adapter that a file's tensors are; it has them as its weights, in their dtype.

    Raises:
        ContextDiffusionError: see `recognise`; or weights that are missing, too many, or of a wrong shape. The message
            does not name the file.
    """
    import torch

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
