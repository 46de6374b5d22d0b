"""What a run of the table makes: its cells, how many images that is, and its files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import ContextDiffusionError
from .tasks import PARTS, TASKS, task_cases

if TYPE_CHECKING:
    from .cases import TableCase

SETTINGS = ("cp", "c", "p", "shuffled", "query_only")
# The table's k where k is not what varies, as in the paper.
MAIN_K = 3


@dataclass(frozen=True)
class Cell:
    """Images of one part and task, in one setting with one number of context images.

    Attributes:
        part: one of `tasks.PARTS`.
        task: a name of `TASKS`; for the VAE's reconstructions the target (`image` or a map).
        setting: one of `SETTINGS`, or `vae`.
        k: number of context images; 0 without context.
    """

    part: str
    task: str
    setting: str
    k: int

    @property
    def name(self) -> str:
        return f"{self.part}-{self.task}-{self.setting}-k{self.k}"


@dataclass(frozen=True)
class Selection:
    """What is asked of a run.

    Attributes:
        tasks: names of `TASKS`.
        settings: of `SETTINGS`; the controls `shuffled` and `query_only` are made for in-domain tasks only.
        ks: numbers of context images.
        curve_tasks: those of the tasks that are made with every k; others with `main_k` only.
        parts: of `tasks.PARTS`.
        count: cases a part.
        seeds: how many.
    """

    tasks: tuple[str, ...] = tuple(TASKS)
    settings: tuple[str, ...] = SETTINGS
    ks: tuple[int, ...] = (1, 2, 3, 5, 8)
    curve_tasks: tuple[str, ...] = ("softedge",)
    parts: tuple[str, ...] = PARTS
    count: int = 168
    seeds: int = 3

    def __post_init__(self) -> None:
        known = {"tasks": tuple(TASKS), "settings": SETTINGS, "curve_tasks": tuple(TASKS), "parts": PARTS}
        for field, names in known.items():
            for name in getattr(self, field):
                if name not in names:
                    raise ContextDiffusionError(
                        f"--{field.replace('_', '-')} names {name!r}: choose from {', '.join(names)}"
                    )
        for field in ("tasks", "settings", "ks", "parts"):
            if not getattr(self, field):
                raise ContextDiffusionError(f"--{field} is empty: nothing is left to make")
        for field, low, values in (("k", 1, self.ks), ("count", 2, (self.count,)), ("seeds", 1, (self.seeds,))):
            for value in values:
                if value < low:
                    raise ContextDiffusionError(f"--{field} is {value}: give at least {low}")

    @property
    def main_k(self) -> int:
        """3, or the k nearest to it."""
        return min(self.ks, key=lambda k: (abs(k - MAIN_K), k))

    def cells(self) -> list[Cell]:
        """Every cell that a model makes images for."""
        found = []
        for part in self.parts:
            targets = dict.fromkeys(TASKS[name].target for name in self.tasks)
            found += [Cell(part, target, "vae", 0) for target in targets]
            for task in self.tasks:
                for setting in self.settings:
                    if setting in ("shuffled", "query_only") and not TASKS[task].in_domain:
                        continue
                    if setting in ("p", "query_only"):
                        ks: Sequence[int] = (0,)
                    elif setting in ("cp", "c") and task in self.curve_tasks:
                        ks = sorted(set(self.ks))
                    else:
                        ks = (self.main_k,)
                    found += [Cell(part, task, setting, k) for k in ks]
        return found


@dataclass(frozen=True)
class TableChunk:
    """One file: some cases of a cell, from one seed."""

    cell: Cell
    seed: int
    start: int
    stop: int

    def path(self, folder: Path) -> Path:
        return folder / f"{self.cell.name}-s{self.seed}" / f"{self.start:05d}-{self.stop:05d}.safetensors"


def cell_cases(cell: Cell, cases: dict[str, list[TableCase]]) -> list[TableCase]:
    """The cases of a cell, from those of every part."""
    chosen = cases[cell.part]
    return chosen if cell.setting == "vae" else task_cases(TASKS[cell.task], chosen)


def cell_seeds(cell: Cell, seeds: int) -> int:
    """The VAE draws no noise: one seed is enough."""
    return 1 if cell.setting == "vae" else seeds


def cell_chunks(cell: Cell, total: int, seed: int, batch_size: int) -> Iterator[TableChunk]:
    """The files of one cell and seed; a larger total keeps all whole ones of a smaller total."""
    for start in range(0, total, batch_size):
        yield TableChunk(cell, seed, start, min(start + batch_size, total))


def table_chunks(
    cells: Sequence[Cell], cases: dict[str, list[TableCase]], seeds: int, batch_size: int
) -> list[TableChunk]:
    """Every file of a run, first seed first."""
    return [
        chunk
        for seed in range(seeds)
        for cell in cells
        if seed < cell_seeds(cell, seeds)
        for chunk in cell_chunks(cell, len(cell_cases(cell, cases)), seed, batch_size)
    ]
