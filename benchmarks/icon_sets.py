"""Icons of sets that training never saw, drawn in the style of three others of their set.

    OMP_NUM_THREADS=1 python -m benchmarks.icon_sets FILE... --data data/icons [--count 48]

What a designer does who completes a set: three icons of it are the context, the soft edges of a further one are the
query, and nothing is said in words. RMSE is to the icon as its set has it, over all pixels of a set, under the set's
own icons and under a context of another held-out set. It cannot be small: three icons do not say which of a set's
colors a fourth has. The loss of eq. 2 (see `heldout_loss`) tells more: what is left of it after all that the context
says. The change of either against the first FILE is a ratio over the same icons and the same noise, with its 95%
bootstrap interval; for the loss, compare models that share their autoencoder.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from context_diffusion.checkpoint.read import load_checkpoint
from context_diffusion.choices import SAMPLERS
from context_diffusion.data.library import EmojiLibrary
from context_diffusion.evaluation.estimates import Estimate, mean_estimate
from context_diffusion.evaluation.metrics import rmse, squared_error
from context_diffusion.images import image_grid, save_image
from context_diffusion.maps import make_map
from context_diffusion.sampling.flow import FlowSampler, SamplingBatch

from .heldout_loss import losses_of

CONTEXT = 3
# Icons of each set in the picture.
SHOWN = 3


def draw_cases(library: EmojiLibrary, count: int, seed: int = 0) -> list[tuple[str, str, list[str], str, list[str]]]:
    """(style, target, its context, another style, context of that) of each image, `count` a held-out style."""
    rng = np.random.default_rng(seed)
    cases = []
    for style in library.heldout_styles:
        for target in rng.choice(library.keys[style], size=count, replace=False).tolist():
            others = [key for key in library.keys[style] if key != target]
            context = rng.choice(others, size=CONTEXT, replace=False).tolist()
            wrong = str(rng.choice([other for other in library.heldout_styles if other != style]))
            cases.append((style, target, context, wrong, rng.choice(library.keys[wrong], CONTEXT, False).tolist()))
    return cases


def generate(sampler: FlowSampler, query: Tensor, context: Tensor, batch: int = 24) -> Tensor:
    """Images in C, (B, 3, H, W) in [0, 1]; the noise of each is seeded by its place."""
    parts = []
    for start in range(0, len(query), batch):
        chosen = slice(start, start + batch)
        seeds = tuple(range(start, start + len(query[chosen])))
        parts.append(
            sampler.generate(
                SamplingBatch(seeds=seeds, query=query[chosen], context=context[chosen], size=query.shape[-1])
            )
        )
    return torch.cat(parts).clamp(0, 1)


def build_parser() -> argparse.ArgumentParser:
    """The options of the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", metavar="FILE", help="checkpoints with a visual context")
    parser.add_argument("--data", required=True, help="folder that `context-diffusion data icons` wrote")
    parser.add_argument("--count", type=int, default=48, help="icons of each held-out set")
    parser.add_argument("--steps", type=int, default=12, help="sampling steps (default 12)")
    parser.add_argument("--sampler", choices=SAMPLERS, default="lcm", help="see sampling.flow.FlowSampler")
    parser.add_argument("--grid", type=Path, metavar="FILE", help="picture of some of them: context, query, images")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    options = build_parser().parse_args(arguments)
    library = EmojiLibrary(options.data)
    cases = draw_cases(library, options.count)
    truth = torch.cat([library.batch(style, [target]) for style, target, *_ in cases])
    query = make_map(truth, "softedge")
    right = torch.stack([library.batch(style, context) for style, _, context, *_ in cases])
    wrong = torch.stack([library.batch(style, context) for *_, style, context in cases])
    styles = [style for style, *_ in cases]
    first: tuple[Tensor, Tensor] | None = None
    drawn = []
    print("set                images      C shuffled  ratio  of the first              loss  of the first")
    for path in options.models:
        model = load_checkpoint(path, dtype=torch.float32).eval().to(memory_format=torch.channels_last)
        sampler = FlowSampler(model, steps=options.steps, sampler=options.sampler)
        images = generate(sampler, query, right)
        drawn.append(images)
        other = generate(sampler, query, wrong)
        losses = losses_of(model, truth, query, right).mean(1)
        first = first or (images, losses)
        print(path)
        for name in (*library.heldout_styles, "all"):
            rows = [index for index, style in enumerate(styles) if name in (style, "all")]
            keys = [cases[index][1] for index in rows]
            mine, shuffled = rmse(images[rows], truth[rows]), rmse(other[rows], truth[rows])
            errors, plain = (squared_error(drawing[rows], truth[rows]) for drawing in (images, first[0]))
            changes = (
                str(_mean(errors[0], keys, errors[1]).over(_mean(plain[0], keys, plain[1])).root()),
                str(_mean(losses[rows], keys).over(_mean(first[1][rows], keys))),
            )
            print(
                f"{name:<18} {len(rows):>6} {mine:>6.3f} {shuffled:>8.3f} {mine / shuffled:>6.3f}  {changes[0]:<22} "
                f"{losses[rows].mean():>7.4f}  {changes[1]}",
                flush=True,
            )
    if options.grid:
        picked = [index for name in library.heldout_styles for index in _first(styles, name)]
        rows = [
            [*right[index], query[index], *(images[index].float() for images in drawn), truth[index]]
            for index in picked
        ]
        names = [Path(path).stem for path in options.models]
        save_image(image_grid(rows, [*["context"] * CONTEXT, "query", *names, "truth"]), options.grid)


def _mean(sums: Tensor, keys: Sequence[str], counts: Tensor | None = None) -> Estimate:
    return mean_estimate(sums, keys, counts, samples=2000)


def _first(styles: Sequence[str], name: str) -> list[int]:
    return [index for index, style in enumerate(styles) if style == name][:SHOWN]


if __name__ == "__main__":
    main()
