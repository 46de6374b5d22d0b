"""What is measured of the images of each cell: figures an image, and features for the distances of sets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from ..features.networks import embed_images
from ..files import write_tensors
from .cases.case import Cell
from .cases.pictures import foregrounds, queries, truths
from .cases.tasks import TASKS
from .chunks import to_pixels
from .color import Regions, color_deviation, color_regions, palette_distance
from .edges import edge_f1, edges
from .generate import load_images
from .metrics import psnr, squared_error, ssim
from .workers import parallel_map

if TYPE_CHECKING:
    from ..features.networks import SqueezeNetFeatures
    from .cases.case_set import CaseSet
    from .judges import Judges
    from .plan import Plan


@dataclass
class Rows:
    """Figures of m runs (seeds) over n cases.

    Attributes:
        values: name in `MEASURES` -> (m, n) float64.
        counts: of the figures that are sums of several values an image, how many: (m, n) float64.
        features: (m, n, d), for the distances of sets.
    """

    values: dict[str, Tensor]
    counts: dict[str, Tensor]
    features: Tensor = field(repr=False)


class Judge:
    """Measures images against the truths of one part and task; what that takes of the truths is made once.

    Args:
        case_set: whose cases.
        cell: any cell that is held to these truths.
        judges: the networks that judge.
    """

    def __init__(self, case_set: CaseSet, cell: Cell, judges: Judges) -> None:
        self.library, self.judges = case_set.library, judges
        self.task, self.cases = TASKS[cell.judged_task], case_set.cases(cell)
        self.pixels = to_pixels(truths(self.library, self.task.target, self.cases)).contiguous()

    @property
    def truth(self) -> Tensor:
        """(n, 3, H, W) in [0, 1]."""
        return self.pixels.float() / 255

    @cached_property
    def features(self) -> Tensor:
        return embed_images(self.judges.kid_features, self.pixels)

    @cached_property
    def edges(self) -> Tensor:
        """Of the truth or, where its layout is another than the query's, of the query."""
        if self.task.aligned:
            return edges(self.truth)
        return edges(to_pixels(queries(self.library, self.task, self.cases)).float() / 255)

    @cached_property
    def foreground(self) -> Tensor:
        return foregrounds(self.library, self.cases)

    @cached_property
    def regions(self) -> Regions:
        return color_regions(self.truth)

    def measure(self, runs: Tensor, figures: Sequence[str]) -> Rows:
        """Images (m, n, 3, H, W), uint8 -> these figures of each."""
        features = [embed_images(self.judges.kid_features, run) for run in runs]
        rows = Rows({}, {}, torch.stack(features))
        for name in figures:
            measured = [
                MEASURES[name](self, run.float() / 255, embedded) for run, embedded in zip(runs, features, strict=True)
            ]
            if isinstance(measured[0], tuple):
                measured, counts = zip(*measured, strict=True)
                rows.counts[name] = torch.stack(counts).double()
            rows.values[name] = torch.stack(tuple(measured)).double()
        return rows


def _mean_squared_error(judge: Judge, images: Tensor, features: Tensor) -> Tensor:
    sums, counts = squared_error(images, judge.truth)
    return sums / counts


def _style_accuracy(judge: Judge, images: Tensor, features: Tensor) -> Tensor:
    embedded = embed_images(judge.judges.style_features, images)
    return judge.judges.style_probe.correct(embedded, [case.style for case in judge.cases])


# Name -> (judge, images (n, 3, H, W) in [0, 1], their features) -> (n,), or (sums, counts), (n,) each.
MEASURES: dict[str, Callable[[Judge, Tensor, Tensor], Tensor | tuple[Tensor, Tensor]]] = {
    "whole": lambda judge, images, _: squared_error(images, judge.truth),
    "foreground": lambda judge, images, _: squared_error(images, judge.truth, judge.foreground),
    "mse": _mean_squared_error,
    "cosine": lambda judge, _, features: functional.cosine_similarity(features.double(), judge.features.double()),
    "distance": lambda judge, images, _: perceptual_distance(
        judge.judges.style_features, images, judge.truth, judge.task.aligned
    ),
    "edge_f1": lambda judge, images, _: edge_f1(edges(images), judge.edges),
    "style_accuracy": _style_accuracy,
    "color_deviation": lambda judge, images, _: color_deviation(images, judge.regions),
    "palette_distance": lambda judge, images, _: palette_distance(images, judge.truth, judge.foreground),
    "psnr": lambda judge, images, _: psnr(images, judge.truth),
    "ssim": lambda judge, images, _: ssim(images, judge.truth),
}


@torch.no_grad()
def perceptual_distance(
    network: SqueezeNetFeatures, images: Tensor, truth: Tensor, aligned: bool, batch_size: int = 32
) -> Tensor:
    """How far images are from their truths in SqueezeNet's features, which decide the preference.

    Args:
        network: from `load_squeezenet`.
        images: (B, 3, H, W) in [0, 1].
        truth: the same shape.
        aligned: place by place (`SqueezeNetFeatures.distance`); else, where layouts differ, one less the
            cosine of the middle layers' means and deviations over space.
        batch_size: images at once.

    Returns:
        (B,), at least 0.
    """
    if not aligned:
        return 1 - functional.cosine_similarity(embed_images(network, images), embed_images(network, truth))
    pairs = zip(images.split(batch_size), truth.split(batch_size), strict=True)
    return torch.cat([network.distance(a, b) for a, b in pairs])


@dataclass(frozen=True)
class Job:
    """What a worker is to measure: a cell of a model's images, or a control (`folder` None)."""

    cell: Cell
    folder: Path | None = None


class CellMeasurer:
    """Measures cells; keeps what all cells of a task share in memory, and what it measured on disk.

    Args:
        plan: of the run.
        judges: from `fit_judges`.
        out: folder for what was measured, which a later run reads instead of measuring again; None keeps nothing.
    """

    def __init__(self, plan: Plan, judges: Judges, out: Path | None) -> None:
        self.plan, self.judges, self.out = plan, judges, out
        self._judge: tuple[tuple[str, str], Judge] | None = None

    def __call__(self, job: Job) -> Rows:
        if self.out is None:
            return self._measure(job)
        cell, owner = job.cell, job.folder.name if job.folder else "controls"
        total, seeds = len(self.plan.case_set.cases(cell)), self.plan.cell_seeds(cell) if job.folder else 1
        path = self.out / owner / f"{cell.name}-n{total}-m{seeds}.safetensors"
        if path.exists():
            return _load_rows(path)
        rows = self._measure(job)
        _save_rows(path, rows)
        return rows

    def _measure(self, job: Job) -> Rows:
        case_set, cell = self.plan.case_set, job.cell
        key = (cell.part, cell.judged_task)
        if self._judge is None or self._judge[0] != key:
            # Cells come task by task: only the last judge is worth its memory.
            self._judge = key, Judge(case_set, cell, self.judges)
        if job.folder is None:
            runs = to_pixels(case_set.control(cell))[None]
        else:
            seeds = range(self.plan.cell_seeds(cell))
            runs = torch.stack([load_images(self.plan, job.folder, cell, seed) for seed in seeds])
        return self._judge[1].measure(runs, case_set.figures(cell))


def measure(plan: Plan, folders: Sequence[Path], judges: Judges, out: Path | None, workers: int = 1) -> dict[Job, Rows]:
    """Every cell of every model's images, and every control.

    Args:
        plan: of the run.
        folders: of the images of each model.
        judges: from `fit_judges`.
        out: see `CellMeasurer`.
        workers: processes that measure.

    Raises:
        ContextDiffusionError: images are missing.
    """
    from tqdm import tqdm

    case_set = plan.case_set
    jobs = [Job(cell, folder) for folder in folders for cell in case_set.cells()]
    jobs += [Job(cell) for cell in case_set.controls()]
    # A distance of sets needs two; few cases have a drawing of another style for a query.
    jobs = [job for job in jobs if len(case_set.cases(job.cell)) > 1]
    # What shares a truth side by side.
    jobs.sort(key=lambda job: (job.cell.part, job.cell.judged_task))
    with parallel_map(CellMeasurer(plan, judges, out), workers) as run:
        # A bar on a terminal only.
        rows = list(tqdm(run(jobs), desc="measure", total=len(jobs), disable=None))
    return dict(zip(jobs, rows, strict=True))


def _save_rows(path: Path, rows: Rows) -> None:
    tensors = {f"values.{name}": value.contiguous() for name, value in rows.values.items()}
    tensors |= {f"counts.{name}": value.contiguous() for name, value in rows.counts.items()}
    write_tensors(path, {**tensors, "features": rows.features.contiguous()})


def _load_rows(path: Path) -> Rows:
    from safetensors.torch import load_file

    tensors = load_file(path)
    rows = Rows({}, {}, tensors.pop("features"))
    for name, value in tensors.items():
        kind, _, figure = name.partition(".")
        getattr(rows, kind)[figure] = value
    return rows
