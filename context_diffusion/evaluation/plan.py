"""What a run makes: the files of every cell of its cases, seed by seed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .cases.case import Cell, Chunk

if TYPE_CHECKING:
    from .cases.case_set import CaseSet


@dataclass(frozen=True)
class Plan:
    """A set of cases, how often and in how large files.

    Attributes:
        case_set: what is asked for.
        seeds: runs with other noise.
        batch_size: images at once, and cases a file.
    """

    case_set: CaseSet
    seeds: int
    batch_size: int

    def cell_seeds(self, cell: Cell) -> int:
        """The VAE draws no noise: one seed is enough."""
        return 1 if cell.setting == "vae" else self.seeds

    def cell_chunks(self, cell: Cell, seed: int) -> list[Chunk]:
        """The files of one cell and seed; of more cases they are the same ones and further ones."""
        total = len(self.case_set.cases(cell))
        starts = range(0, total, self.batch_size)
        return [Chunk(cell, seed, start, min(start + self.batch_size, total)) for start in starts]

    def chunks(self) -> list[Chunk]:
        """Every file of the run, first seed first."""
        return [
            chunk
            for seed in range(self.seeds)
            for cell in self.case_set.cells()
            if seed < self.cell_seeds(cell)
            for chunk in self.cell_chunks(cell, seed)
        ]

    def path(self, folder: Path, chunk: Chunk) -> Path:
        """A file, in the folder of a model's images."""
        return folder / self.case_set.file(chunk)
