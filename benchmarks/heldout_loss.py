"""The training loss on held-out emoji at fixed noise: in minutes, whether a change of training helped.

    OMP_NUM_THREADS=1 python -m benchmarks.heldout_loss FILE... --data data/emoji [--count 140] [--k 3]

Each part (seen styles, unseen styles, held-out style transforms) is asked for in C, at four noise levels, with the same
noise for every FILE, under its own context and a shuffled one. `C / shuffled` is the ratio of the two losses at the
highest level, where nothing but query and context says what is to be drawn: near 1 the context is not read. The
change against the first FILE is a ratio too, with its 95% bootstrap interval over emoji. The latents are each model's
own: compare models that share their autoencoder. A Prompt Diffusion baseline is shown the first context image with its
soft edges as its example pair.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
from torch import Tensor

from context_diffusion.checkpoint.read import load_checkpoint
from context_diffusion.data.library import EmojiLibrary
from context_diffusion.evaluation.cases.case import Case
from context_diffusion.evaluation.cases.heldout import PARTS, TASK, heldout_cases
from context_diffusion.evaluation.cases.pictures import contexts, queries, truths
from context_diffusion.evaluation.cases.tasks import TASKS
from context_diffusion.evaluation.estimates import Estimate, mean_estimate
from context_diffusion.maps import make_map
from context_diffusion.model.context_diffusion import ContextDiffusion
from context_diffusion.model.guidance import FULL
from context_diffusion.model.process import diffusion_loss
from context_diffusion.precision import multiply_in_bf16
from research import register

LEVELS = (0.3, 0.6, 0.8, 0.99)
BATCH = 32


@torch.no_grad()
def losses_of(model: ContextDiffusion, truth: Tensor, query: Tensor, context: Tensor) -> Tensor:
    """Eq. 2 at each noise level, the query given and the prompt empty.

    Args:
        model: f and its encoders.
        truth: targets (B, 3, H, W) in [0, 1].
        query: q (B, 3, H, W) in [0, 1].
        context: (B, k, 3, H, W) in [0, 1].

    Returns:
        (B, levels).
    """
    latents = model.encode_images(truth)
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))
    text = model.encode_prompts([""]).expand(len(truth), -1, -1)
    sources = None
    if model.wants_context_queries:
        sources = make_map(context.flatten(0, 1), "softedge").unflatten(0, context.shape[:2])
    rows = []
    for start in range(0, len(truth), BATCH):
        part = slice(start, start + BATCH)
        pairs = None if sources is None else sources[part]
        y, layout = model.guided_inputs((FULL,), text[part], text[part], context[part], query[part], pairs)
        levels = [torch.full((len(latents[part]),), level) for level in LEVELS]
        rows.append(
            torch.stack(
                [diffusion_loss(model, latents[part], y, layout, noise[part], level) for level in levels], dim=1
            )
        )
    return torch.cat(rows)


def change(losses: Tensor, first: Tensor, cases: Sequence[Case]) -> Estimate:
    """How many times the first model's loss, over all levels."""
    keys = [case.key for case in cases]
    own, other = (mean_estimate(each.mean(1), keys, samples=2000) for each in (losses, first))
    return own.over(other)


def build_parser() -> argparse.ArgumentParser:
    """The options of the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", metavar="FILE", help="checkpoints with a visual context")
    parser.add_argument("--data", required=True, help="folder that `context-diffusion data emoji` wrote")
    parser.add_argument("--count", type=int, default=140, help="images of seen styles; half as many of each other part")
    parser.add_argument("--k", type=int, default=3, help="context images")
    return parser


def main() -> None:
    parser = build_parser()
    arguments = parser.parse_args()
    register()
    models = [load_checkpoint(path, dtype=torch.float32) for path in arguments.models]
    for path, model in zip(arguments.models, models, strict=True):
        missing = [part for part in model.context_parts if getattr(model, part) is None]
        if missing:
            parser.error(f"{path} has no {missing[0]} and so no context: leave it out")
    library = EmojiLibrary(arguments.data)
    cases = heldout_cases(library, arguments.count, arguments.count // 2, arguments.count // 2, arguments.k)
    task = TASKS[TASK]
    truth, query = truths(library, "image", cases), queries(library, task, cases)
    right, wrong = (contexts(library, task, cases, arguments.k, shuffled) for shuffled in (False, True))
    first: dict[str, Tensor] = {}
    print(
        f"{'part':<11} {'images':>6}  "
        + "  ".join(f"s={level:<5}" for level in LEVELS)
        + "  C / shuffled  of the first"
    )
    for path, model in zip(arguments.models, models, strict=True):
        multiply_in_bf16(model.eval().to(memory_format=torch.channels_last))
        losses, shuffled = (losses_of(model, truth, query, context) for context in (right, wrong))
        print(path)
        for part in PARTS:
            rows = [index for index, case in enumerate(cases) if case.part == part]
            if not rows:
                continue
            own, mine = losses[rows], [cases[index] for index in rows]
            against = change(own, first.setdefault(part, own), mine)
            levels = "  ".join(f"{value:.5f}" for value in own.mean(0).tolist())
            ratio = float(own[:, -1].mean() / shuffled[rows, -1].mean())
            print(f"{part:<11} {len(rows):>6}  {levels}  {ratio:>12.3f}  {against}", flush=True)


if __name__ == "__main__":
    main()
