"""What a protocol is to the machine that plans, makes and measures its images."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from .case import Case, Cell, Chunk
from .pictures import truths
from .tasks import TASKS

if TYPE_CHECKING:
    import numpy as np

    from ...data.library import EmojiLibrary


class CaseSet(ABC):
    """The cases of a protocol: which cells there are, what each holds, and what is measured of it.

    Args:
        library: the data set.
        parts: part -> its cases.
    """

    def __init__(self, library: EmojiLibrary, parts: dict[str, list[Case]]) -> None:
        self.library, self.parts = library, parts

    @abstractmethod
    def cells(self) -> list[Cell]:
        """Every cell that a model makes images for."""

    @abstractmethod
    def controls(self) -> list[Cell]:
        """Every cell that needs no model: it is measured, not made."""

    @abstractmethod
    def figures(self, cell: Cell) -> tuple[str, ...]:
        """What is measured of a cell, names of `measure.MEASURES`."""

    @abstractmethod
    def noise(self, chunk: Chunk) -> tuple[int, ...]:
        """The seed of each image's noise: the same in every setting, so that settings compare in pairs."""

    @abstractmethod
    def file(self, chunk: Chunk) -> str:
        """Where a chunk lies in the folder of its images."""

    def cases(self, cell: Cell) -> list[Case]:
        """The cases of a cell."""
        return self.parts[cell.part]

    def control(self, cell: Cell) -> Tensor:
        """What stands in the output's place in one of `controls`, (n, 3, H, W) in [0, 1]: the truth.

        Its memory layout counts: networks round otherwise over another one.
        """
        return truths(self.library, TASKS[cell.task].target, self.cases(cell))


def noise_seed(*name: object) -> int:
    """A seed that depends on a name alone."""
    digest = hashlib.sha256(":".join(map(str, name)).encode()).digest()
    return int.from_bytes(digest[:6], "big")


def draw_context(
    library: EmojiLibrary, pool: Sequence[str], key: str, k: int, group_share: float, rng: np.random.Generator
) -> tuple[str, ...]:
    """Keys of k different context images from a style's pool, never the target's.

    Args:
        library: the data set.
        pool: keys to choose from.
        key: the target's.
        k: how many.
        group_share: chance that one is of the target's own group, where there is one left.
        rng: of the choice.
    """
    others = [other for other in pool if other != key]
    chosen: list[str] = []
    for _ in range(k):
        free = [other for other in others if other not in chosen]
        related = [other for other in free if library.group(other) == library.group(key)]
        chosen.append(str(rng.choice(related if related and rng.random() < group_share else free)))
    return tuple(chosen)
