"""How much of a table's KID lies in the fills: the same images with even fills, and with the right colors.

    OMP_NUM_THREADS=1 python -m benchmarks.what_kid_sees TABLE [TABLE...] --data data/emoji [--tasks softedge depth]

For images that `context-diffusion evaluate table --out TABLE` made. Where the truth has an area of one color (see
`evaluation.color.color_regions`), the output is changed and the KID taken again:

    even    the area gets its own mean color in the output: the model's colors, no unevenness
    right   the area's mean color becomes the truth's: the model's unevenness, the right colors
    both    the area is the truth's

Outlines, shading and the background stay the output's. This needs the truth and is no figure of a model: it says
which of its faults the KID is made of. Beside them the mean deviation of color within the areas, and the mean
distance of their colors from the truth's, both on [0, 1].
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from context_diffusion.data.library import EmojiLibrary
from context_diffusion.evaluation.cases.case import Cell
from context_diffusion.evaluation.cases.selection import Selection
from context_diffusion.evaluation.cases.table import TableCases
from context_diffusion.evaluation.chunks import held_facts, to_pixels
from context_diffusion.evaluation.color import Regions, color_deviation, color_regions
from context_diffusion.evaluation.estimates import kid_estimate
from context_diffusion.evaluation.generate import load_images
from context_diffusion.evaluation.plan import Plan
from context_diffusion.features.networks import EfficientNetLite0Features, embed_images


def area_means(images: Tensor, regions: Regions) -> Tensor:
    """Mean color of each area, (R + 1, 3); row 0 is what lies in none."""
    labels = regions.labels.flatten()
    count = len(regions.image) + 1
    pixels = images.movedim(1, -1).reshape(-1, 3)
    sums = pixels.new_zeros(count, 3).index_add_(0, labels, pixels)
    return sums / torch.bincount(labels, minlength=count).clamp(min=1)[:, None]


def painted(colors: Tensor, regions: Regions) -> Tensor:
    """Each area in its color, (B, 3, H, W)."""
    return colors[regions.labels].movedim(-1, 1)


def changed(images: Tensor, truth: Tensor, regions: Regions) -> dict[str, Tensor]:
    """The images as they are and in the three ways that the module's head names."""
    inside = (regions.labels > 0)[:, None]
    means = area_means(images, regions)
    shift = area_means(truth, regions) - means
    return {
        "as made": images,
        "even": torch.where(inside, painted(means, regions), images),
        "right": torch.where(inside, (images + painted(shift, regions)).clamp(0, 1), images),
        "both": torch.where(inside, truth, images),
    }


def rows_of(table: Path, library: EmojiLibrary, tasks: list[str], embed: Callable[[Tensor], Tensor]) -> list[list[str]]:
    """One row a part, task, setting and model of a table's folder."""
    protocol = json.loads((table / "table.json").read_text())["protocol"]
    k, rows = protocol["main_k"], []
    case_set = TableCases(library, Selection(tasks=tuple(tasks), ks=(k,), count=protocol["count"]))
    for part in case_set.parts:
        for task in tasks:
            truth = case_set.control(Cell(part, task, "truth"))
            regions, wanted = color_regions(truth), embed(truth)
            for setting in ("cp", "c"):
                cell = Cell(part, task, setting, k)
                groups = [case.key for case in case_set.cases(cell)]
                for folder in sorted(path for path in (table / "images").iterdir() if path.is_dir()):
                    plan = Plan(case_set, 1, held_facts(folder)["batch_size"])
                    images = load_images(plan, folder, cell, 0).float() / 255
                    versions = changed(images, truth, regions)
                    kid = [kid_estimate(embed(v)[None], wanted, groups, samples=10).value for v in versions.values()]
                    sums, counts = color_deviation(images, regions)
                    off = (area_means(images, regions) - area_means(truth, regions))[1:].square().mean(1).sqrt()
                    figures = [*kid, float(sums.sum() / counts.sum()), float(off.mean())]
                    rows.append([part, task, setting, folder.name, *(f"{value:.3f}" for value in figures)])
    return rows


def build_parser() -> argparse.ArgumentParser:
    """The options of the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="+", type=Path, help="folders of `evaluate table --out`")
    parser.add_argument("--data", required=True, help="folder of `context-diffusion data emoji`")
    parser.add_argument("--tasks", nargs="+", default=["softedge"], help="map -> image tasks (default softedge)")
    return parser


def main() -> None:
    options = build_parser().parse_args()
    library, features = EmojiLibrary(options.data), EfficientNetLite0Features()
    print("| styles | task | setting | model | KID | even | right | both | deviation | colors off |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for table in options.tables:
        for row in rows_of(
            table, library, options.tasks, lambda images: embed_images(features, to_pixels(images).contiguous())
        ):
            print("| " + " | ".join(row) + " |", flush=True)


if __name__ == "__main__":
    main()
