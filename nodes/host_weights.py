"""Whether a network of the host was filled with exactly the weights of a file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor

from ..context_diffusion.errors import ContextDiffusionError


def check_weights(path: Path, part: str, given: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    """Compare names and shapes, before the host loads what it can and logs the rest.

    Args:
        path: the file, for the message.
        part: the checkpoint's name for the network.
        given: weights by the host's names.
        wanted: the host network's `state_dict()`.

    Raises:
        ContextDiffusionError: missing, unknown or of another shape.
    """
    check_names(path, part, given, wanted)
    for key, tensor in given.items():
        if tensor.shape != wanted[key].shape:
            raise ContextDiffusionError(
                f"{path}: {part} weight {key} is {list(tensor.shape)}, but its config asks for "
                f"{list(wanted[key].shape)}: save it again"
            )


def check_names(path: Path, part: str, given: Iterable[str], wanted: Iterable[str]) -> None:
    """`check_weights` without the shapes."""
    given, wanted = set(given), set(wanted)
    for problem, keys in (("lacks", wanted - given), ("has, beside what its config asks for,", given - wanted)):
        if keys:
            raise ContextDiffusionError(
                f"{path}: the {part} {problem} {len(keys)} weights ({min(keys)} among them): save it again"
            )


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
