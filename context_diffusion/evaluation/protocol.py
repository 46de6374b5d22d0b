"""The held-out protocol: which images are asked for, with which context, in which settings.

Content is held out (codepoints that training never saw, neither as target nor as context image). Three parts:
`seen` (the train styles), `unseen` (the held-out styles) and `transforms` (train styles under families of
style transforms that training never drew).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..errors import ContextDiffusionError

if TYPE_CHECKING:
    from ..data.library import EmojiLibrary
    from ..data.transforms import StyleTransform

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
PARTS = ("seen", "unseen", "transforms")

# A prompt names the style and the colors of the untransformed image: it says nothing right under a transform.
PART_SETTINGS = {"seen": SETTINGS, "unseen": SETTINGS, "transforms": ("c", "shuffled", "query_only")}


@dataclass(frozen=True)
class Case:
    """One held-out image to be made.

    Attributes:
        part: one of `PARTS`.
        style: the style of the target and of its context.
        key: the target's codepoints.
        context: keys of the k context images, never the target's.
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


def heldout_cases(
    library: EmojiLibrary,
    seen: int = 630,
    unseen: int = 320,
    transforms: int = 320,
    k: int = 3,
    group_share: float = 0.5,
    seed: int = 0,
) -> list[Case]:
    """Draw the cases; the same library and numbers always give the same ones.

    Every style gets the same number. A context image is of the target's own group with probability
    `group_share`, else of any; all are held-out content too.

    Args:
        library: the emoji data set.
        seen: cases in the train styles.
        unseen: cases in the held-out styles.
        transforms: cases in the train styles under held-out families of transforms.
        k: context images a case.
        group_share: 0 to 1.
        seed: of the draws.

    Raises:
        ContextDiffusionError: a style has too few held-out images.
    """
    rng = np.random.default_rng(seed)
    cases = []
    for part, total in zip(PARTS, (seen, unseen, transforms), strict=True):
        styles = library.heldout_styles if part == "unseen" else library.train_styles
        for index, style in enumerate(styles):
            share = total // len(styles) + (index < total % len(styles))
            pool = sorted(library.heldout_keys[style])
            if share and len(pool) < max(share, k + 1):
                raise ContextDiffusionError(
                    f"{style} has {len(pool)} held-out images and the protocol wants {share} of them, "
                    f"each with {k} others as context: ask for fewer"
                )
            for key in sorted(rng.choice(pool, size=share, replace=False).tolist()):
                context = draw_context(library, pool, key, k, group_share, rng)
                others = [name for name in library.styles if name != style]
                others = [name for name in others if all(library.has(name, one) for one in context)]
                if not others:
                    raise ContextDiffusionError(f"no other style holds {', '.join(context)} for a shuffled context")
                other = str(rng.choice(others))
                seeds = rng.integers(2**31, size=2).tolist() if part == "transforms" else (None, None)
                cases.append(Case(part, style, key, context, other, *seeds))
    return cases


def draw_context(
    library: EmojiLibrary, pool: Sequence[str], key: str, k: int, group_share: float, rng: np.random.Generator
) -> tuple[str, ...]:
    """Keys of k different context images from a style's pool, never the target's; see `heldout_cases`."""
    others = [one for one in pool if one != key]
    chosen: list[str] = []
    for _ in range(k):
        free = [one for one in others if one not in chosen]
        related = [one for one in free if library.group(one) == library.group(key)]
        chosen.append(str(rng.choice(related if related and rng.random() < group_share else free)))
    return tuple(chosen)


def cases_digest(cases: Sequence[Case]) -> str:
    """A short name of exactly these cases."""
    text = json.dumps([asdict(case) for case in cases], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def truths(library: EmojiLibrary, cases: Sequence[Case]) -> Tensor:
    """The targets, redrawn by their transforms, (B, 3, H, W) in [0, 1]."""
    return torch.cat([_pictures(library, case.style, [case.key], case.transform) for case in cases])


def foregrounds(library: EmojiLibrary, cases: Sequence[Case]) -> Tensor:
    """Where the drawings are, (B, H, W) bool; a transform does not move them."""
    grounds = [library.background(case.style, [case.key])[:, 0] < 0.5 for case in cases]
    return torch.cat(grounds)


def queries(library: EmojiLibrary, cases: Sequence[Case], name: str = "softedge") -> Tensor:
    """The query maps of the targets as they are to look, style transform included.

    Returns:
        (B, 3, H, W) in [0, 1].
    """
    from ..maps import make_map

    return make_map(truths(library, cases), name)


def contexts(library: EmojiLibrary, cases: Sequence[Case], shuffled: bool = False) -> Tensor:
    """The context images: of the right style, or the same content in another one.

    Returns:
        (B, k, 3, H, W) in [0, 1].
    """
    return torch.stack(
        [
            _pictures(
                library,
                case.other_style if shuffled else case.style,
                list(case.context),
                case.other_transform if shuffled else case.transform,
            )
            for case in cases
        ]
    )


def heldout_transform(seed: int) -> StyleTransform:
    """The style transform of a seed, of the families that training never draws."""
    from ..data.transforms import HELDOUT_FAMILIES, sample_transform

    return sample_transform(np.random.default_rng(seed), HELDOUT_FAMILIES)


def _pictures(library: EmojiLibrary, style: str, keys: list[str], transform: int | None) -> Tensor:
    images = library.batch(style, keys)
    if transform is None:
        return images
    return heldout_transform(transform)(images, library.background(style, keys))
