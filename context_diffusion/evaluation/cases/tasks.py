"""Tasks, settings and parts by name. Light: the command line reads it before anything heavy is imported."""

from __future__ import annotations

from dataclasses import dataclass

SETTINGS = ("cp", "c", "p", "shuffled", "query_only")
SETTING_NAMES = {
    "cp": "C+P",
    "c": "C",
    "p": "P",
    "shuffled": "shuffled context",
    "query_only": "query only",
    "vae": "VAE alone",
    "real": "real images",
}
WITH_CONTEXT, WITH_PROMPT = ("cp", "c", "shuffled"), ("cp", "p")
PART_NAMES = {"seen": "seen styles", "unseen": "unseen styles"}
SKETCH_STYLE = "openmoji-black"


@dataclass(frozen=True)
class Task:
    """What is shown and what is to be made of it.

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
TASK_GROUPS = {
    "in-domain": [name for name, task in TASKS.items() if task.in_domain],
    "out-of-domain": [name for name, task in TASKS.items() if not task.in_domain],
}
