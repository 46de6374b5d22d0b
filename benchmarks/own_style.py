"""A style of one's own before and after training on it: RMSE to pictures of it that training never saw.

    OMP_NUM_THREADS=1 python -m benchmarks.own_style --data DATA [--models FILE...] [--loras FILE...] [--grid FILE]

DATA is what `context-diffusion data folder` wrote. The targets are the held-out pictures of each style, the query is
the target's soft edge, the context is three of the pictures that training had, drawn anew for each target, and nothing
is said in words. RMSE is over all pixels; the change against the bundled model is a ratio over the same pictures and
the same noise, with its 95% bootstrap interval over pictures.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from context_diffusion.checkpoint.lora import apply_lora
from context_diffusion.checkpoint.read import load_checkpoint
from context_diffusion.data.library import EmojiLibrary
from context_diffusion.evaluation.estimates import Estimate, mean_estimate
from context_diffusion.evaluation.metrics import squared_error
from context_diffusion.images import image_grid, save_image
from context_diffusion.maps import make_map
from context_diffusion.model.context_diffusion import ContextDiffusion
from context_diffusion.pretrained import DEFAULT_MODEL, find_model
from context_diffusion.sampling.flow import FlowSampler

from .icon_sets import CONTEXT, generate

# Pictures of each style in the grid.
SHOWN = 6


def draw_cases(library: EmojiLibrary, count: int, seed: int = 0) -> list[tuple[str, str, list[str]]]:
    """(style, target, its context) of each image, `count` of a style at the most."""
    rng = np.random.default_rng(seed)
    cases = []
    for style in library.train_styles:
        targets = rng.permutation(library.heldout_keys[style])[:count].tolist()
        cases += [(style, key, rng.choice(library.train_keys[style], CONTEXT, False).tolist()) for key in targets]
    return cases


def models(files: Sequence[str], loras: Sequence[str]) -> Iterator[tuple[str, ContextDiffusion]]:
    """The bundled model, the files, and the bundled model under each LoRA."""
    for name, lora in [
        (DEFAULT_MODEL, None),
        *((file, None) for file in files),
        *((DEFAULT_MODEL, file) for file in loras),
    ]:
        model = load_checkpoint(find_model(name), dtype=torch.float32)
        if lora:
            apply_lora(model, lora)
        yield Path(lora or name).stem, model.eval().to(memory_format=torch.channels_last)


def build_parser() -> argparse.ArgumentParser:
    """The options of the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="folder that `context-diffusion data folder` wrote")
    parser.add_argument("--models", nargs="+", default=[], metavar="FILE", help="checkpoints that were trained on it")
    parser.add_argument("--loras", nargs="+", default=[], metavar="FILE", help="LoRA files of the bundled model")
    parser.add_argument("--count", type=int, default=100, help="held-out pictures of each style at the most (100)")
    parser.add_argument("--steps", type=int, default=12, help="sampling steps (12)")
    parser.add_argument("--grid", type=Path, metavar="FILE", help="picture of some of them: context, query, images")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    options = build_parser().parse_args(arguments)
    library = EmojiLibrary(options.data)
    cases = draw_cases(library, options.count)
    truth = torch.cat([library.batch(style, [target]) for style, target, _ in cases])
    query = make_map(truth, "softedge")
    context = torch.stack([library.batch(style, keys) for style, _, keys in cases])
    drawn: dict[str, torch.Tensor] = {}
    first: dict[str, Estimate] = {}
    print(f"{'model':<24} {'style':<16} images  {'RMSE':<21}  of {DEFAULT_MODEL}'s")
    for label, model in models(options.models, options.loras):
        images = drawn[label] = generate(FlowSampler(model, steps=options.steps), query, context)
        for style in library.train_styles:
            rows = [index for index, case in enumerate(cases) if case[0] == style]
            sums, counts = squared_error(images[rows], truth[rows])
            error = mean_estimate(sums, [cases[index][1] for index in rows], counts).root()
            change = error.over(first.setdefault(style, error))
            print(f"{label:<24} {style:<16} {len(rows):>6}  {error}  {change}", flush=True)
    if options.grid:
        picked = [
            index
            for style in library.train_styles
            for index in [index for index, case in enumerate(cases) if case[0] == style][:SHOWN]
        ]
        rows = [[*context[i], query[i], *(images[i].float() for images in drawn.values()), truth[i]] for i in picked]
        save_image(image_grid(rows, [*["context"] * CONTEXT, "query", *drawn, "truth"]), options.grid)


if __name__ == "__main__":
    main()
