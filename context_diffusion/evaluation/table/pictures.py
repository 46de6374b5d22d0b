"""Which pictures each task of the table shows and asks for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...errors import ContextDiffusionError
from ...maps import make_map
from .tasks import SKETCH_STYLE, Task

if TYPE_CHECKING:
    from ...data.library import EmojiLibrary
    from .cases import TableCase

# The kind of map that is shown in the shuffled control instead of the right one.
_WRONG_MAP = {"softedge": "segmentation", "segmentation": "depth", "depth": "softedge"}


def truths(library: EmojiLibrary, target: str, cases: Sequence[TableCase]) -> Tensor:
    """What is to be made, (B, 3, H, W) in [0, 1].

    Args:
        library: the emoji data set.
        target: `image`, or the name of a map.
        cases: whose truths.
    """
    images = torch.cat([library.batch(case.style, [case.key]) for case in cases])
    return images if target == "image" else make_map(images, target)


def queries(library: EmojiLibrary, task: Task, cases: Sequence[TableCase]) -> Tensor:
    """The query images, (B, 3, H, W) in [0, 1]."""
    return torch.cat([_shown(library, task, case, case.style, [case.key]) for case in cases])


def contexts(library: EmojiLibrary, task: Task, cases: Sequence[TableCase], k: int, shuffled: bool = False) -> Tensor:
    """The first k context images of each case: what the task makes, of other emoji, never of the target.

    Args:
        library: the emoji data set.
        task: which.
        cases: whose context.
        k: how many.
        shuffled: the same emoji in another style or, where maps are to be made, another kind of map.

    Returns:
        (B, k, 3, H, W) in [0, 1].

    Raises:
        ContextDiffusionError: a case has fewer than k.
    """
    found = []
    for case in cases:
        if not 1 <= k <= len(case.context):
            raise ContextDiffusionError(f"k is {k}: the cases have 1 to {len(case.context)} context images")
        style = case.other_style if shuffled and task.kind != "reverse" else case.style
        images = library.batch(style, list(case.context[:k]))
        if task.kind == "reverse":
            images = make_map(images, _WRONG_MAP[task.map] if shuffled else task.map)
        found.append(images)
    return torch.stack(found)


def context_queries(
    library: EmojiLibrary, task: Task, cases: Sequence[TableCase], k: int, shuffled: bool = False
) -> Tensor:
    """The query that belongs to each of `contexts`: for models that are shown example pairs.

    Returns:
        (B, k, 3, H, W) in [0, 1].
    """
    found = []
    for case in cases:
        style = case.other_style if shuffled and task.kind != "reverse" else case.style
        found.append(_shown(library, task, case, style, list(case.context[:k])))
    return torch.stack(found)


def prompts(library: EmojiLibrary, task: Task, cases: Sequence[TableCase]) -> tuple[str, ...]:
    """What is asked for in words, one prompt a case."""
    if task.kind == "reverse":
        from ...data.captions import MAP_WORDS

        return tuple(f"{MAP_WORDS[task.map]}, {library.emoji[case.key]['name']}" for case in cases)
    return tuple(library.caption(case.style, case.key) for case in cases)


def _shown(library: EmojiLibrary, task: Task, case: TableCase, style: str, keys: list[str]) -> Tensor:
    """What a task shows as the query for pictures of a style: (B, 3, H, W)."""
    if task.kind == "drawing":
        return library.batch(SKETCH_STYLE if task.name == "sketch" else case.drawing_style, keys)
    images = library.batch(style, keys)
    return images if task.kind == "reverse" else make_map(images, task.map)
