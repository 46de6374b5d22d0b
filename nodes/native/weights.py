"""Whether a network of the host was filled with exactly the weights of a file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor, nn

from ...context_diffusion.errors import ContextDiffusionError


def check_weights(path: Path, part: str, weights: dict[str, Tensor], network: nn.Module) -> None:
    """Compare names and shapes, before the host loads what it can and logs the rest.

    Args:
        path: the file, for the message.
        part: the checkpoint's name for the network.
        weights: by the host's names.
        network: the host's.

    Raises:
        ContextDiffusionError: missing, unknown or of another shape.
    """
    wanted = wanted_shapes(network)
    lacking, strange = wanted.keys() - weights.keys(), weights.keys() - wanted.keys()
    for problem, keys in (("lacks", lacking), ("has, beside what its config asks for,", strange)):
        if keys:
            raise ContextDiffusionError(
                f"{path}: the {part} {problem} {len(keys)} weights ({min(keys)} among them): save it again"
            )
    for key, tensor in weights.items():
        if tuple(tensor.shape) != wanted[key]:
            raise ContextDiffusionError(
                f"{path}: {part} weight {key} is {list(tensor.shape)}, but its config asks for "
                f"{list(wanted[key])}: save it again"
            )


def wanted_shapes(network: nn.Module) -> dict[str, tuple[int, ...]]:
    """What a network of the host's layers is to be filled with: name -> shape.

    Its `state_dict()` does not say it everywhere. Where the host pages weights (DynamicVRAM: its default on NVIDIA
    cards since 0.33, and on Windows before) linear layers have no weights until they are loaded, and then take those
    of any shape. What a layer was made for stands in the layer.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    for name, layer in network.named_modules():
        prefix = f"{name}." if name else ""
        if isinstance(layer, nn.Linear):
            shapes[f"{prefix}weight"] = (layer.out_features, layer.in_features)
            if layer.bias is not None or getattr(layer, "comfy_need_lazy_init_bias", False):
                shapes[f"{prefix}bias"] = (layer.out_features,)
        elif isinstance(layer, nn.Embedding):
            shapes[f"{prefix}weight"] = (layer.num_embeddings, layer.embedding_dim)
    return shapes


def in_own_dtypes(network: nn.Module, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights in the dtypes that a network was made for: a layer without weights would take those of any.

    Args:
        network: the host's.
        weights: all of its weights, by its names.
    """
    dtypes = {name: tensor.dtype for name, tensor in network.state_dict().items()}
    for name, layer in network.named_modules():
        if isinstance(layer, nn.Linear) and layer.weight is None:
            prefix = f"{name}." if name else ""
            dtypes |= {f"{prefix}{leaf}": layer.weight_comfy_model_dtype for leaf in ("weight", "bias")}
    return {name: tensor.to(dtypes[name] or tensor.dtype) for name, tensor in weights.items()}


@contextmanager
def shapes_of(path: Path, part: str) -> Iterator[None]:
    """Turn torch's report about shapes, from a class of the host that loads weights as it is made, into one line."""
    try:
        yield
    except RuntimeError as error:
        mismatch = next((line.strip() for line in str(error).splitlines() if "size mismatch" in line), None)
        if mismatch is None:
            raise
        raise ContextDiffusionError(f"{path}: {part}: {mismatch} save it again") from error
