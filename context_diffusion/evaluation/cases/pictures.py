"""Which pictures each task shows and asks for, of a case's style and under its style transform."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ...errors import ContextDiffusionError
from ...maps import make_map
from .tasks import SKETCH_STYLE, Task

if TYPE_CHECKING:
    from ...data.library import EmojiLibrary
    from ...data.transforms import StyleTransform
    from .case import Case

# The kind of map that is shown in the shuffled control instead of the right one.
_WRONG_MAP = {"softedge": "segmentation", "segmentation": "depth", "depth": "softedge"}


def truths(library: EmojiLibrary, target: str, cases: Sequence[Case]) -> Tensor:
    """What is to be made, (B, 3, H, W) in [0, 1].

    Args:
        library: the emoji data set.
        target: `image`, or the name of a map.
        cases: whose truths.
    """
    images = torch.cat([_drawn(library, case, [case.key]) for case in cases])
    return images if target == "image" else make_map(images, target)


def queries(library: EmojiLibrary, task: Task, cases: Sequence[Case]) -> Tensor:
    """The query images, (B, 3, H, W) in [0, 1]."""
    return torch.cat([_queries(library, task, case, [case.key]) for case in cases])


def contexts(library: EmojiLibrary, task: Task, cases: Sequence[Case], k: int, shuffled: bool = False) -> Tensor:
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
    stacks = []
    for case in cases:
        if not 1 <= k <= len(case.context):
            raise ContextDiffusionError(f"k is {k}: the cases have 1 to {len(case.context)} context images")
        images = _drawn(library, case, list(case.context[:k]), shuffled and task.kind != "reverse")
        if task.kind == "reverse":
            images = make_map(images, _WRONG_MAP[task.map] if shuffled else task.map)
        stacks.append(images)
    return torch.stack(stacks)


def context_queries(library: EmojiLibrary, task: Task, cases: Sequence[Case], k: int, shuffled: bool = False) -> Tensor:
    """The query that belongs to each of `contexts`: for models that are shown example pairs.

    Returns:
        (B, k, 3, H, W) in [0, 1].
    """
    return torch.stack([_queries(library, task, case, list(case.context[:k]), shuffled) for case in cases])


def prompts(library: EmojiLibrary, task: Task, cases: Sequence[Case]) -> tuple[str, ...]:
    """What is asked for in words, one prompt a case."""
    if task.kind == "reverse":
        from ...data.captions import MAP_WORDS

        return tuple(f"{MAP_WORDS[task.map]}, {library.emoji[case.key]['name']}" for case in cases)
    return tuple(library.caption(case.style, case.key) for case in cases)


def foregrounds(library: EmojiLibrary, cases: Sequence[Case]) -> Tensor:
    """Where the drawings are, (B, H, W) bool; a transform does not move them."""
    return torch.cat([library.background(case.style, [case.key])[:, 0] < 0.5 for case in cases])


def heldout_transform(seed: int) -> StyleTransform:
    """The style transform of a seed, of the families that training never draws."""
    from ...data.transforms import HELDOUT_FAMILIES, sample_transform

    return sample_transform(np.random.default_rng(seed), HELDOUT_FAMILIES)


def _queries(library: EmojiLibrary, task: Task, case: Case, keys: list[str], shuffled: bool = False) -> Tensor:
    """What a task shows as the query for pictures of a case's style, or of its other one: (B, 3, H, W)."""
    if task.kind == "drawing":
        return library.batch(SKETCH_STYLE if task.name == "sketch" else case.drawing_style, keys)
    if task.kind == "reverse":
        return _drawn(library, case, keys)
    return make_map(_drawn(library, case, keys, shuffled), task.map)


def _drawn(library: EmojiLibrary, case: Case, keys: list[str], shuffled: bool = False) -> Tensor:
    """Pictures as the case's style and transform have them, or its other ones: (B, 3, H, W)."""
    style, transform = (case.other_style, case.other_transform) if shuffled else (case.style, case.transform)
    images = library.batch(style, keys)
    if transform is None:
        return images
    return heldout_transform(transform)(images, library.background(style, keys))
