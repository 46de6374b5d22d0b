"""Euler's steps against steps with new noise, on held-out emoji with the same context, query and first noise.

    OMP_NUM_THREADS=1 python -m benchmarks.samplers FILE --data data/emoji [--count 140] [--steps 4 8 12 20]

For a checkpoint that predicts a flow, see `sampling.flow.FlowSampler`. Seen and unseen styles in C, seen ones in C+P
too. RMSE, KID (own pairs left out, as in `evaluate table`) and the mean deviation of color within areas of one color
come with 95% bootstrap intervals over emoji; `deviation of euler` is a paired ratio, at as many steps.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from context_diffusion.data.library import EmojiLibrary
from context_diffusion.evaluation.cases.heldout import HeldoutCases, heldout_cases
from context_diffusion.evaluation.chunks import to_pixels
from context_diffusion.evaluation.color import color_deviation, color_regions
from context_diffusion.evaluation.estimates import Estimate, kid_estimate, mean_estimate
from context_diffusion.evaluation.generate import make_chunk
from context_diffusion.evaluation.metrics import squared_error
from context_diffusion.evaluation.plan import Plan
from context_diffusion.evaluation.run import load_for_sampling
from context_diffusion.features.networks import EfficientNetLite0Features, embed_images
from context_diffusion.sampling.flow import FlowSampler

BATCH = 32
CELLS = (("seen", "cp"), ("seen", "c"), ("unseen", "c"))


def build_parser() -> argparse.ArgumentParser:
    """The options of the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, metavar="FILE", help="checkpoint that predicts a flow")
    parser.add_argument("--data", required=True, help="folder of `context-diffusion data emoji`")
    parser.add_argument("--count", type=int, default=140, help="images in each part (default 140)")
    parser.add_argument("--steps", nargs="+", type=int, default=[4, 8, 12, 20], help="default 4 8 12 20")
    parser.add_argument("--guidance", type=float, default=3.0, help="of text and of context (default 3)")
    return parser


def main() -> None:
    options = build_parser().parse_args()
    library, features = EmojiLibrary(options.data), EfficientNetLite0Features()
    model = load_for_sampling(options.model, "bf16_matmul")
    plan = Plan(HeldoutCases(library, heldout_cases(library, options.count, options.count, 0)), 1, BATCH)
    print("| styles | setting | steps | sampler | RMSE | KID-EffNetLite0 | color deviation | deviation of euler |")
    print("|---|---|---|---|---|---|---|---|")
    for part, setting in CELLS:
        cell, control = plan.case_set.cell(part, setting), plan.case_set.cell(part, "real")
        groups = [case.key for case in plan.case_set.cases(cell)]
        truth = plan.case_set.control(control)
        regions, wanted = color_regions(truth), embed_images(features, to_pixels(truth).contiguous())
        for steps in options.steps:
            plain: Estimate | None = None
            for name in ("euler", "lcm"):
                sampler = FlowSampler(model, steps, options.guidance, options.guidance, name)
                chunks = plan.cell_chunks(cell, 0)
                images = torch.cat([make_chunk(model, sampler, plan.case_set, chunk) for chunk in chunks])
                sums, counts = color_deviation(images, regions)
                deviation = mean_estimate(sums, groups, counts, samples=2000)
                plain = plain or deviation
                pixels = to_pixels(images).contiguous()
                sums, counts = squared_error(images, truth)
                figures = [
                    mean_estimate(sums, groups, counts, samples=2000).root(),
                    kid_estimate(embed_images(features, pixels), wanted, groups, samples=500),
                    deviation,
                    "" if name == "euler" else deviation.over(plain),
                ]
                print(f"| {part} | {setting} | {steps} | {name} | {' | '.join(map(str, figures))} |", flush=True)


if __name__ == "__main__":
    main()
