"""Sample grids during training: always the same held-out emoji, contexts and noise."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ...data.library import EmojiLibrary
from ...data.transforms import HELDOUT_FAMILIES, TRAIN_FAMILIES, sample_transform
from ...maps import make_map
from ...model.context_diffusion import ContextDiffusion
from ...sampling.flow import FlowSampler, SamplingBatch


def preview_cases(library: EmojiLibrary, plain: int = 7, transformed: int = 5) -> dict:
    """Targets (n, 3, H, W), contexts (n, 3, 3, H, W) and captions: one a training style, then style transforms."""
    rng = np.random.default_rng(7)
    targets, contexts, captions = [], [], []
    for row in range(plain + transformed):
        style = library.train_styles[row % len(library.train_styles)]
        keys = library.heldout_keys[style]
        if len(keys) < 4:
            # A small set of one's own: the rest of it is there for context.
            keys = library.keys[style]
        target = str(rng.choice(keys))
        near = [key for key in keys if key != target and library.subgroup(key) == library.subgroup(target)]
        others = [key for key in keys if key != target and key not in near]
        # A set of one's own is all of one subgroup.
        more = [str(key) for key in rng.choice(others, size=3, replace=False)] if others else []
        chosen = (near + more)[:3]
        pictures = library.batch(style, [target, *chosen])
        if row >= plain:
            families = TRAIN_FAMILIES if row % 2 else HELDOUT_FAMILIES
            pictures = sample_transform(rng, families)(pictures, library.background(style, [target, *chosen]))
        targets.append(pictures[0])
        contexts.append(pictures[1:])
        captions.append(library.caption(style, target))
    return {"targets": torch.stack(targets), "contexts": torch.stack(contexts), "captions": tuple(captions)}


@torch.no_grad()
def preview_grid(model: ContextDiffusion, library: EmojiLibrary, steps: int = 12) -> Tensor:
    """Columns: query, three context images, truth, C+P, C, wrong context, P; one row a case, (3, H, W)."""
    training = model.training
    model.eval()
    cases = preview_cases(library)
    query = make_map(cases["targets"], "softedge")
    seeds = tuple(range(len(query)))
    sampler = FlowSampler(model, steps)
    shown = query if model.layout_encoder is not None else None
    right, wrong = cases["contexts"], cases["contexts"].roll(1, 0)
    sources = None
    if sampler.wants_context_queries:
        sources = make_map(right.flatten(0, 1), "softedge").unflatten(0, right.shape[:2])
    made = [
        sampler.generate(SamplingBatch(seeds, shown, context, prompts, library.size, sources))
        for context, prompts in ((right, cases["captions"]), (right, None), (wrong, None), (None, cases["captions"]))
    ]
    model.train(training)
    columns = [query, *right.unbind(1), cases["targets"], *(images.cpu() for images in made)]
    return torch.cat([torch.cat(list(column), dim=-2) for column in columns], dim=-1)
