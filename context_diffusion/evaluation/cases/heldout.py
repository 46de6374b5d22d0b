"""The held-out protocol: soft edges, one number of context images, in styles and under style transforms.

Content is held out (codepoints that training never saw, neither as target nor as context image). Three parts:
`seen` (the train styles), `unseen` (the held-out styles) and `transforms` (train styles under families of
style transforms that training never drew).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import numpy as np

from ...errors import ContextDiffusionError
from .case import Case, Cell, Chunk
from .case_set import CaseSet, draw_context, noise_seed
from .tasks import SETTINGS, WITH_CONTEXT

if TYPE_CHECKING:
    from ...data.library import EmojiLibrary

PARTS = ("seen", "unseen", "transforms")
TASK = "softedge"

# A prompt names the style and the colors of the untransformed image: it says nothing right under a transform.
PART_SETTINGS = {"seen": SETTINGS, "unseen": SETTINGS, "transforms": ("c", "shuffled", "query_only")}


class HeldoutCases(CaseSet):
    """The protocol as the machine takes it.

    Args:
        library: the emoji data set.
        cases: from `heldout_cases`.
    """

    def __init__(self, library: EmojiLibrary, cases: Sequence[Case]) -> None:
        parts = {part: [case for case in cases if case.part == part] for part in PARTS}
        super().__init__(library, {part: members for part, members in parts.items() if members})
        self.k = len(cases[0].context)

    def cell(self, part: str, setting: str) -> Cell:
        """The cell of a part in a setting."""
        return Cell(part, "image" if setting == "vae" else TASK, setting, self.k if setting in WITH_CONTEXT else 0)

    def cells(self) -> list[Cell]:
        return [self.cell(part, setting) for part in self.parts for setting in (*PART_SETTINGS[part], "vae")]

    def controls(self) -> list[Cell]:
        """The truths themselves."""
        return [self.cell(part, "real") for part in self.parts]

    def figures(self, cell: Cell) -> tuple[str, ...]:
        # The style classifier knows no transformed styles.
        style = () if cell.part == "transforms" else ("style_accuracy",)
        if cell.setting == "real":
            return ("color_deviation", *style)
        similarity = ("psnr", "ssim") if cell.setting == "vae" else ()
        return ("whole", "foreground", "edge_f1", "color_deviation", "palette_distance", *style, *similarity)

    def noise(self, chunk: Chunk) -> tuple[int, ...]:
        return tuple(noise_seed(chunk.seed, chunk.cell.part, row) for row in range(chunk.start, chunk.stop))

    def file(self, chunk: Chunk) -> str:
        return f"{chunk.cell.part}-{chunk.cell.setting}-{chunk.seed}-{chunk.start:05d}.safetensors"

    def digest(self) -> str:
        """A short name of exactly these cases."""
        text = json.dumps([asdict(case) for cases in self.parts.values() for case in cases], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


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
                others = [name for name in others if all(library.has(name, other) for other in context)]
                if not others:
                    raise ContextDiffusionError(f"no other style holds {', '.join(context)} for a shuffled context")
                other = str(rng.choice(others))
                seeds = rng.integers(2**31, size=2).tolist() if part == "transforms" else (None, None)
                cases.append(Case(part, style, key, context, other, *seeds))
    return cases
