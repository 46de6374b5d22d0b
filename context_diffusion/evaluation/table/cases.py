"""Which held-out emoji the table asks for, with which context."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ...errors import ContextDiffusionError
from ..protocol import draw_context
from .tasks import PART_NAMES, SKETCH_STYLE

if TYPE_CHECKING:
    from ...data.library import EmojiLibrary

MOST_CONTEXT = 8


@dataclass(frozen=True)
class TableCase:
    """One held-out image; every task asks for it, or for a map of it.

    Attributes:
        part: one of `tasks.PARTS`.
        style: of the image and of its context.
        key: the image's codepoints.
        context: keys of context images, never the image's own; k context images are the first k.
        other_style: where the shuffled context comes from: the same keys in another style.
        drawing_style: another style that draws the image and its context, for `edit`; None if there is none.
        sketch: whether line art of the image and its context is there, in a style that is not line art.
        fresh: key of another held-out image of the style, for real against real.
    """

    part: str
    style: str
    key: str
    context: tuple[str, ...]
    other_style: str
    drawing_style: str | None
    sketch: bool
    fresh: str


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
        other: [one for one in pool if one != key and library.has(other, one)]
        for other in library.styles
        if other != style
    }
    others = [other for other, keys in shared.items() if len(keys) >= most]
    if not others:
        raise ContextDiffusionError(f"no other style holds {most} of the held-out images of {style}")
    other_style = str(rng.choice(others))
    context = draw_context(library, shared[other_style], key, most, group_share, rng)

    def draws(other: str) -> bool:
        return other != style and all(library.has(other, one) for one in (key, *context))

    drawings = [other for other in library.styles if other != SKETCH_STYLE and draws(other)]
    return TableCase(
        part,
        style,
        key,
        context,
        other_style,
        str(rng.choice(drawings)) if drawings else None,
        SKETCH_STYLE in library.styles and draws(SKETCH_STYLE),
        fresh,
    )


def _rng(name: str) -> np.random.Generator:
    return np.random.default_rng(int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big"))
