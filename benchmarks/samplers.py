"""Euler's steps against steps with new noise, on held-out emoji with the same context, query and first noise.

    OMP_NUM_THREADS=1 python -m benchmarks.samplers FILE --data data/emoji [--count 140] [--steps 4 8 12 20]

For a checkpoint that predicts a flow, see `flow_sampler.FlowSampler`. Seen and unseen styles in C, seen ones in C+P
too. RMSE, KID (own pairs left out, as in `evaluate table`) and the mean deviation of color within areas of one color
come with 95% bootstrap intervals over emoji; `deviation of euler` is a paired ratio, at as many steps.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
from torch import Tensor

from context_diffusion.checkpoint import load_checkpoint
from context_diffusion.data.library import EmojiLibrary
from context_diffusion.evaluation.chunks import to_pixels
from context_diffusion.evaluation.color import color_deviation, color_regions
from context_diffusion.evaluation.estimates import kid_estimate
from context_diffusion.evaluation.heldout import Chunk, make_chunk
from context_diffusion.evaluation.metrics import squared_error
from context_diffusion.evaluation.protocol import Case, heldout_cases, truths
from context_diffusion.evaluation.statistics import (
    Interval,
    mean_interval,
    resample_groups,
    rmse_interval,
)
from context_diffusion.features import EfficientNetLite0Features, embed_images
from context_diffusion.flow_sampler import FlowSampler
from context_diffusion.model import ContextDiffusion
from context_diffusion.precision import multiply_in_bf16

BATCH = 32
CELLS = (("seen", "cp"), ("seen", "c"), ("unseen", "c"))


def make_images(
    model: ContextDiffusion, sampler: FlowSampler, library: EmojiLibrary, cases: Sequence[Case], setting: str
) -> Tensor:
    """An image for each case of one part, (B, 3, H, W) in [0, 1]."""
    chunks = [
        Chunk(cases[0].part, setting, 0, start, min(start + BATCH, len(cases))) for start in range(0, len(cases), BATCH)
    ]
    return torch.cat([make_chunk(model, sampler, library, cases, chunk) for chunk in chunks])


def deviation_ratio(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor], groups: Sequence[str]) -> Interval:
    """Mean deviation of one over that of the other, (sums, counts) of `color_deviation`, resampled in pairs."""
    weights = resample_groups(groups)
    value = (first[0].sum() / first[1].sum()) / (second[0].sum() / second[1].sum())
    drawn = ((weights @ first[0]) / (weights @ first[1])) / ((weights @ second[0]) / (weights @ second[1]))
    low, high = torch.quantile(drawn, torch.tensor([0.025, 0.975], dtype=drawn.dtype)).tolist()
    return Interval(float(value), low, high)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="FILE", help="checkpoint that predicts a flow")
    parser.add_argument("--data", required=True, help="folder of `context-diffusion data emoji`")
    parser.add_argument("--count", type=int, default=140, help="images in each part (default 140)")
    parser.add_argument("--steps", nargs="+", type=int, default=[4, 8, 12, 20], help="default 4 8 12 20")
    parser.add_argument("--guidance", type=float, default=3.0, help="of text and of context (default 3)")
    options = parser.parse_args()
    library, features = EmojiLibrary(options.data), EfficientNetLite0Features()
    model = load_checkpoint(options.model, dtype=torch.float32).eval().to(memory_format=torch.channels_last)
    multiply_in_bf16(model)
    every = heldout_cases(library, options.count, options.count, 0)
    print("| styles | setting | steps | sampler | RMSE | KID-EffNetLite0 | color deviation | deviation of euler |")
    print("|---|---|---|---|---|---|---|---|")
    for part, setting in CELLS:
        cases = [case for case in every if case.part == part]
        groups = [case.key for case in cases]
        truth = truths(library, cases)
        regions, wanted = color_regions(truth), embed_images(features, to_pixels(truth))
        for steps in options.steps:
            plain: tuple[Tensor, Tensor] | None = None
            for name in ("euler", "lcm"):
                sampler = FlowSampler(model, steps, options.guidance, options.guidance, name)
                images = make_images(model, sampler, library, cases, setting)
                deviation = color_deviation(images, regions)
                plain = plain or deviation
                kid = kid_estimate(embed_images(features, to_pixels(images))[None], wanted, groups, samples=500)
                figures = [
                    rmse_interval(*squared_error(images, truth), groups),
                    Interval(*kid.triple()),
                    mean_interval(deviation[0], groups, deviation[1]),
                    "" if name == "euler" else deviation_ratio(deviation, plain, groups),
                ]
                print(f"| {part} | {setting} | {steps} | {name} | {' | '.join(map(str, figures))} |", flush=True)


if __name__ == "__main__":
    main()
