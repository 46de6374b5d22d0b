"""In-context episodes: groups of pictures of one style or task, from which a target and its context are drawn.

A group is a set of (query, target) pictures that look alike: emoji of one style, emoji redrawn by one style
transform, or maps of one kind (a reverse task: the image is the query and the map is to be made). Within a batch
every member of a group is a target once, and its context is drawn from the *other* members, never from itself.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ...data.captions import MAP_WORDS, transformed_caption
from ...data.library import EmojiLibrary
from ...data.transforms import sample_transform
from ...maps import make_map
from ..settings import DiffusionSettings

OTHER_MAPS = ("canny", "scribble", "depth", "normal", "segmentation")
REVERSE_MAPS = ("softedge", "segmentation", "depth", "canny", "normal")


@dataclass
class Group:
    """Pictures that may serve each other as context.

    Attributes:
        kind: `plain`, `transformed` or `reverse`.
        style: style of the pictures, or the map's name in a reverse task.
        keys: one emoji a picture.
        images: targets, (n, 3, H, W) in [0, 1].
        queries: the usual query of each, (n, 3, H, W).
        other_queries: another query of each (another map, another style's drawing), (n, 3, H, W).
        captions: a few captions of each picture.
    """

    kind: str
    style: str
    keys: list[str]
    images: Tensor
    queries: Tensor
    other_queries: Tensor
    captions: list[list[str]] = field(default_factory=list)


def draw_keys(library: EmojiLibrary, style: str, count: int, rng: np.random.Generator, among: list[str]) -> list[str]:
    """Distinct emoji of a style in runs of four of one subgroup, so that context often is of the target's kind.

    Where subgroups are too few or too small, as in a set of one's own, any of the style in any order; where there are
    fewer than `count`, in turn, so that as many in succession as there are keys are distinct.

    Args:
        library: the data set.
        style: whose pictures.
        count: how many, a multiple of 4.
        rng: source of the choice.
        among: keys to draw from.
    """
    by_subgroup: dict[str, list[str]] = {}
    for key in among:
        by_subgroup.setdefault(library.subgroup(key), []).append(key)
    large = [name for name, keys in by_subgroup.items() if len(keys) >= 4]
    if len(large) < count // 4:
        order = [str(key) for key in rng.permutation(among)]
        return [order[index % len(order)] for index in range(count)]
    weights = np.array([len(by_subgroup[name]) for name in large], dtype=float) ** 0.7
    chosen: list[str] = []
    for name in rng.choice(large, size=count // 4, replace=False, p=weights / weights.sum()):
        chosen += [str(key) for key in rng.choice(by_subgroup[str(name)], size=4, replace=False)]
    return chosen


def draw_group(library: EmojiLibrary, rng: np.random.Generator, kind: str, size: int = 16) -> Group:
    """One group of training emoji.

    Args:
        library: the data set; only training styles and content are drawn.
        rng: source of every choice.
        kind: `plain`, `transformed` or `reverse`.
        size: pictures in the group, a multiple of 4.
    """
    style = library.draw_style(rng)
    keys = draw_keys(library, style, size, rng, library.train_keys[style])
    plain = library.batch(style, keys)
    if kind == "reverse":
        name = str(rng.choice(REVERSE_MAPS))
        maps = make_map(plain, name)
        captions = [[f"{MAP_WORDS[name]}, {library.entry(style, key)['name']}", MAP_WORDS[name]] for key in keys]
        return Group(kind, name, keys, maps, plain, plain, captions)
    if kind == "plain":
        images = plain
        captions = [[library.caption(style, key, rng) for _ in range(4)] for key in keys]
    else:
        transform = sample_transform(rng)
        images = transform(plain, library.background(style, keys))
        captions = [
            [transformed_caption(library.entry(style, key), transform.families, image, rng) for _ in range(2)]
            for key, image in zip(keys, images, strict=True)
        ]
    # Half of the transformed groups are asked for by the plain drawing's edges: those say nothing of the new style.
    source = plain if kind == "transformed" and rng.random() < 0.5 else images
    other = _other_drawing(library, style, keys, kind, rng)
    if other:
        other_queries = library.batch(other, keys)
    else:
        other_queries = make_map(source, str(rng.choice(OTHER_MAPS, p=(0.15, 0.35, 0.2, 0.15, 0.15))))
    return Group(kind, style, keys, images, make_map(source, "softedge"), other_queries, captions)


def _other_drawing(
    library: EmojiLibrary, style: str, keys: list[str], kind: str, rng: np.random.Generator
) -> str | None:
    """Another style's drawings of the same layout as the other query: for 70% of the groups that have one.

    A transformed group has it half as often.
    """
    others = library.same_layout(style)
    if not others or (kind != "plain" and rng.random() >= 0.5) or rng.random() >= 0.7:
        return None
    others = [other for other in others if all(library.has(other, key) for key in keys)]
    if len(others) < 2:
        return others[0] if others else None
    return str(rng.choice(others))


def context_matrix(
    rows: Tensor,
    members: int,
    generator: torch.Generator,
    dropout: float,
    largest_k: int = DiffusionSettings.largest_k,
) -> Tensor:
    """Which pictures are whose context: row weights over the batch's unique pictures, each row summing to 1 or 0.

    Args:
        rows: (R,) the target's position among the batch's pictures, which stand group after group.
        members: pictures of a group in the batch.
        generator: source of k ~ U{1..largest_k}, of the choice, and of context dropout.
        dropout: share of rows without context (all zero).
        largest_k: most context images.

    Returns:
        (R, U) with U = the number of unique pictures; the target's own weight is always 0.
    """
    unique = int(rows.max()) + 1
    unique += -unique % members
    matrix = torch.zeros(len(rows), unique)
    for row, target in enumerate(rows.tolist()):
        if float(torch.rand((), generator=generator)) < dropout:
            continue
        start = target - target % members
        others = [index for index in range(start, start + members) if index != target]
        k = int(torch.randint(1, min(largest_k, len(others)) + 1, (), generator=generator))
        chosen = torch.randperm(len(others), generator=generator)[:k].tolist()
        matrix[row, [others[index] for index in chosen]] = 1 / k
    return matrix
