"""What is asked of a run of the table. Light: the command line reads it."""

from __future__ import annotations

from dataclasses import dataclass

from ...errors import ContextDiffusionError
from ...ranges import whole_number
from .case import Cell
from .tasks import PART_NAMES, SETTINGS, TASKS

# The table's k where k is not what varies, as in the paper.
MAIN_K = 3


@dataclass(frozen=True)
class Selection:
    """What is asked of a run.

    Attributes:
        tasks: names of `TASKS`.
        settings: of `SETTINGS`; the controls `shuffled` and `query_only` are made for in-domain tasks only.
        ks: numbers of context images.
        curve_tasks: those of the tasks that are made with every k; others with `main_k` only.
        parts: of `PART_NAMES`.
        count: cases a part.
        seeds: how many.

    Raises:
        ContextDiffusionError: an unknown name, a number out of range, or nothing is left to make.
    """

    tasks: tuple[str, ...] = tuple(TASKS)
    settings: tuple[str, ...] = SETTINGS
    ks: tuple[int, ...] = (1, 2, 3, 5, 8)
    curve_tasks: tuple[str, ...] = ("softedge",)
    parts: tuple[str, ...] = tuple(PART_NAMES)
    count: int = 168
    seeds: int = 3

    def __post_init__(self) -> None:
        known = {"tasks": TASKS, "settings": SETTINGS, "curve_tasks": TASKS, "parts": PART_NAMES}
        for field, names in known.items():
            for name in getattr(self, field):
                if name not in names:
                    raise ContextDiffusionError(
                        f"--{field.replace('_', '-')} names {name!r}: choose from {', '.join(names)}"
                    )
        for field in ("tasks", "settings", "ks", "parts"):
            if not getattr(self, field):
                raise ContextDiffusionError(f"--{field} is empty: nothing is left to make")
        for k in self.ks:
            whole_number(1).check(**{"--k": k})
        # A distance of sets needs two.
        whole_number(2).check(**{"--count": self.count})
        whole_number(1).check(**{"--seeds": self.seeds})

    @property
    def main_k(self) -> int:
        """3, or the k nearest to it."""
        return min(self.ks, key=lambda k: (abs(k - MAIN_K), k))

    def cells(self) -> list[Cell]:
        """Every cell that a model makes images for."""
        cells = []
        for part in self.parts:
            targets = dict.fromkeys(TASKS[name].target for name in self.tasks)
            cells += [Cell(part, target, "vae") for target in targets]
            cells += [
                Cell(part, task, setting, k)
                for task in self.tasks
                for setting in self.settings
                for k in self._ks(task, setting)
            ]
        return cells

    def _ks(self, task: str, setting: str) -> tuple[int, ...]:
        if setting in ("shuffled", "query_only") and not TASKS[task].in_domain:
            return ()
        if setting in ("p", "query_only"):
            return (0,)
        return self.ks if setting != "shuffled" and task in self.curve_tasks else (self.main_k,)
