"""The table's protocol: every task asks for the same held-out emoji, with one to eight context images."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from ...errors import ContextDiffusionError
from .case import Cell, Chunk, TableCase
from .case_set import CaseSet, draw_context, noise_seed
from .pictures import contexts, queries, truths
from .selection import Selection
from .tasks import PART_NAMES, SKETCH_STYLE, TASKS

if TYPE_CHECKING:
    from ...data.library import EmojiLibrary

MOST_CONTEXT = 8
# `truth`: what all cells are compared with, as features alone. `real`: fresh real images.
CONTROLS = ("truth", "real", "copy_query", "copy_context")


class TableCases(CaseSet):
    """The protocol as the machine takes it.

    Args:
        library: the emoji data set.
        selection: tasks, settings, numbers of context images and cases.

    Raises:
        ContextDiffusionError: the data set has too few held-out images.
    """

    def __init__(self, library: EmojiLibrary, selection: Selection) -> None:
        super().__init__(library, {part: table_cases(library, part, selection.count) for part in selection.parts})
        self.selection = selection
        most = min(len(case.context) for cases in self.parts.values() for case in cases)
        if max(selection.ks) > most:
            raise ContextDiffusionError(
                f"--k is {max(selection.ks)}: this data set has {most} context images for a case"
            )

    def cells(self) -> list[Cell]:
        return self.selection.cells()

    def controls(self) -> list[Cell]:
        """Each task's truths, other real images, and copies of what is shown."""
        tasks = self.selection.tasks
        return [Cell(part, task, control) for part in self.parts for task in tasks for control in CONTROLS]

    def cases(self, cell: Cell) -> list[TableCase]:
        """Every case of the part that the task has a query for: not all have a drawing of another style."""
        cases = self.parts[cell.part]
        if cell.task == "sketch":
            return [case for case in cases if case.sketch]
        if cell.task == "edit":
            return [case for case in cases if case.drawing_style is not None]
        return cases

    def figures(self, cell: Cell) -> tuple[str, ...]:
        task = TASKS[cell.judged_task]
        style = ("style_accuracy",) if task.target == "image" else ()
        if cell.setting == "truth":
            return ()
        if cell.setting == "real":
            # Other emoji: nothing that compares with the truth picture by picture.
            return style
        edges = ("edge_f1",) if task.target == "image" else ()
        return ("cosine", *(("mse",) if task.aligned else ()), "distance", *edges, *style)

    def noise(self, chunk: Chunk) -> tuple[int, ...]:
        cases = self.cases(chunk.cell)[chunk.start : chunk.stop]
        return tuple(noise_seed(chunk.seed, case.style, case.key) for case in cases)

    def file(self, chunk: Chunk) -> str:
        return f"{chunk.cell.name}-s{chunk.seed}/{chunk.start:05d}-{chunk.stop:05d}.safetensors"

    def control(self, cell: Cell) -> Tensor:
        task, cases = TASKS[cell.task], self.cases(cell)
        if cell.setting == "copy_query":
            images = queries(self.library, task, cases)
        elif cell.setting == "copy_context":
            images = contexts(self.library, task, cases, 1)[:, 0]
        else:
            cases = [replace(case, key=case.fresh) for case in cases] if cell.setting == "real" else cases
            images = truths(self.library, task.target, cases)
        return images.contiguous()


def table_cases(library: EmojiLibrary, part: str, count: int, group_share: float = 0.5) -> list[TableCase]:
    """The first `count` cases of a part, its styles in turn.

    A case depends on the library, its style and its key alone: a larger count starts with the cases of a
    smaller one.

    Args:
        library: the emoji data set.
        part: `seen` (the train styles) or `unseen` (the held-out ones).
        count: how many.
        group_share: chance that a context image is of the target's own group.

    Raises:
        ContextDiffusionError: the styles have too few held-out images.
    """
    styles = library.train_styles if part == "seen" else library.heldout_styles
    pools = {style: sorted(library.heldout_keys[style]) for style in styles}
    orders = {style: _rng(style).permutation(pool).tolist() for style, pool in pools.items()}
    most = sum(map(len, orders.values()))
    if not styles or count > len(styles) * min(map(len, orders.values())):
        raise ContextDiffusionError(
            f"--count is {count}: {PART_NAMES[part]} have {most} held-out images, give at most "
            f"{len(styles) * min(map(len, orders.values()), default=0)}"
        )
    cases = []
    for index in range(count):
        style, row = styles[index % len(styles)], index // len(styles)
        key, fresh = orders[style][row], orders[style][-1 - row]
        cases.append(_draw_case(library, part, style, pools[style], key, fresh, group_share))
    return cases


def _draw_case(
    library: EmojiLibrary, part: str, style: str, pool: list[str], key: str, fresh: str, group_share: float
) -> TableCase:
    rng = _rng(f"{style}/{key}")
    most = min(MOST_CONTEXT, len(pool) - 1)
    if most < 1:
        raise ContextDiffusionError(f"{style} has {len(pool)} held-out image: a context needs another one")
    # Some emoji are drawn in one style only: the context is drawn from what another style draws, too.
    shared = {
        other: [drawn for drawn in pool if drawn != key and library.has(other, drawn)]
        for other in library.styles
        if other != style
    }
    others = [other for other, keys in shared.items() if len(keys) >= most]
    if not others:
        raise ContextDiffusionError(f"no other style holds {most} of the held-out images of {style}")
    other_style = str(rng.choice(others))
    context = draw_context(library, shared[other_style], key, most, group_share, rng)

    def draws(other: str) -> bool:
        return other != style and all(library.has(other, each) for each in (key, *context))

    drawings = [other for other in library.styles if other != SKETCH_STYLE and draws(other)]
    return TableCase(
        part,
        style,
        key,
        context,
        other_style,
        drawing_style=str(rng.choice(drawings)) if drawings else None,
        sketch=SKETCH_STYLE in library.styles and draws(SKETCH_STYLE),
        fresh=fresh,
    )


def _rng(name: str) -> np.random.Generator:
    return np.random.default_rng(int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big"))
