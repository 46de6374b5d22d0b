"""One image that is asked for, and a cell of such images. Light: the command line reads it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Case:
    """One held-out image to be made.

    Attributes:
        part: a group of cases that is reported by itself: seen styles, unseen styles, held-out style transforms.
        style: of the image and of its context.
        key: the image's codepoints.
        context: keys of context images, never the image's own; k context images are the first k.
        other_style: where the shuffled context comes from: the same keys in another style.
        transform: seed of the style transform of target and context; None for none.
        other_transform: seed of the shuffled context's transform; None for none.
    """

    part: str
    style: str
    key: str
    context: tuple[str, ...]
    other_style: str
    transform: int | None = None
    other_transform: int | None = None


@dataclass(frozen=True)
class TableCase(Case):
    """A case that the table's tasks ask for, or for a map of.

    Attributes:
        drawing_style: another style that draws the image and its context, for `edit`; None if there is none.
        sketch: whether line art of the image and its context is there, in a style that is not line art.
        fresh: key of another held-out image of the style, for real against real.
    """

    drawing_style: str | None = None
    sketch: bool = False
    fresh: str = ""


@dataclass(frozen=True)
class Cell:
    """Images of one part and task, in one setting with one number of context images.

    Attributes:
        part: as of its cases.
        task: a name of `TASKS`; for the VAE's reconstructions the target (`image` or a map).
        setting: one of `SETTINGS`, `vae`, or a control that needs no model.
        k: number of context images; 0 without context.
    """

    part: str
    task: str
    setting: str
    k: int = 0

    @property
    def name(self) -> str:
        return f"{self.part}-{self.task}-{self.setting}-k{self.k}"

    @property
    def judged_task(self) -> str:
        """Whose truths it is measured against; the VAE's images belong to a target, which any task may make."""
        if self.setting != "vae":
            return self.task
        return "softedge" if self.task == "image" else f"to-{self.task}"


@dataclass(frozen=True)
class Chunk:
    """One file of images: some cases of a cell, from one seed.

    Attributes:
        cell: whose images.
        seed: 0, 1, ...
        start: first case, counted within the cell.
        stop: one past the last.
    """

    cell: Cell
    seed: int
    start: int
    stop: int
