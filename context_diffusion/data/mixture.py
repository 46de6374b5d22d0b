"""A data set and others beside it, each with its share of what training draws."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from ..errors import ContextDiffusionError
from .library import EmojiLibrary


class Mixture:
    """Where training draws from.

    Attributes:
        library: the main data set: its size, and its held-out pictures in previews.
        others: name -> another data set of that size, and its share of the draws.
    """

    def __init__(self, library: EmojiLibrary, others: Mapping[str, tuple[EmojiLibrary, float]] | None = None) -> None:
        self.library, self.others = library, dict(others or {})

    @classmethod
    def open(cls, folder: str | Path, others: Mapping[str, tuple[str, float]]) -> Mixture:
        """The data sets of some folders.

        Raises:
            ContextDiffusionError: a folder holds no data set, or one of another size than the first.
        """
        library, opened = EmojiLibrary(folder), {}
        for name, (path, share) in others.items():
            opened[name] = EmojiLibrary(path), share
            size = opened[name][0].size
            if size != library.size:
                raise ContextDiffusionError(
                    f"the pictures of {name} = {path} are {size} pixels and those of {folder} {library.size}: make "
                    "both of one size"
                )
        return cls(library, opened)

    def __iter__(self) -> Iterator[EmojiLibrary]:
        yield self.library
        for library, _ in self.others.values():
            yield library

    def draw(self, rng: np.random.Generator) -> EmojiLibrary:
        """One of the data sets, by their shares."""
        if self.others:
            place = rng.random()
            for library, share in self.others.values():
                if place < share:
                    return library
                place -= share
        return self.library
