"""The tasks of the table by name. Light: the command line reads it before anything heavy is imported."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .cases import TableCase

PARTS = ("seen", "unseen")
PART_NAMES = {"seen": "seen styles", "unseen": "unseen styles"}
SKETCH_STYLE = "openmoji-black"


@dataclass(frozen=True)
class Task:
    """One row of the table.

    Attributes:
        name: of the task, on the command line and in files.
        title: in tables.
        kind: `forward` (map -> image), `reverse` (image -> map) or `drawing` (another drawing -> image).
        map: the map's name, or None for drawings.
        in_domain: whether the paper counts it among the tasks trained on.
    """

    name: str
    title: str
    kind: str
    map: str | None
    in_domain: bool

    @property
    def target(self) -> str:
        """What is made: `image`, or the name of a map."""
        return self.map if self.kind == "reverse" else "image"

    @property
    def aligned(self) -> bool:
        """Whether the truth has the query's layout, pixel by pixel: not so where the query is another drawing."""
        return self.kind != "drawing"


_MAP_TITLES = {"softedge": "soft edge", "segmentation": "segmentation", "depth": "depth"}
_TASKS = (
    *(Task(name, f"{title} -> image", "forward", name, True) for name, title in _MAP_TITLES.items()),
    *(Task(f"to-{name}", f"image -> {title}", "reverse", name, True) for name, title in _MAP_TITLES.items()),
    *(Task(name, f"{name} -> image", "forward", name, False) for name in ("canny", "scribble", "normal")),
    Task("sketch", "sketch -> image", "drawing", None, False),
    Task("edit", "another style's drawing -> image", "drawing", None, False),
)
TASKS = {task.name: task for task in _TASKS}


def task_cases(task: Task, cases: Sequence[TableCase]) -> list[TableCase]:
    """The cases that the task has a query for: every one, but for drawings."""
    if task.name == "sketch":
        return [case for case in cases if case.sketch]
    if task.name == "edit":
        return [case for case in cases if case.drawing_style is not None]
    return list(cases)
