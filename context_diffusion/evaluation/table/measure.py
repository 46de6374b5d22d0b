"""What is measured of the images of one cell: figures a sample, and features for the distances of sets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from ...features.networks import embed_images
from ...files import write_tensors
from ..chunks import to_pixels
from ..layout import edge_f1, edges
from ..metrics import squared_error
from .generate import load_cell
from .pictures import contexts, queries, truths
from .plan import Cell, cell_cases, cell_seeds
from .tasks import TASKS, Task

if TYPE_CHECKING:
    from ...data.library import EmojiLibrary
    from ...features.networks import SqueezeNetFeatures
    from ..summary import Judges
    from .cases import TableCase

# Controls that need no model: they are measured, not made.
CONTROLS = ("real", "copy_query", "copy_context")


@dataclass
class Rows:
    """Figures of m runs (seeds) over n cases.

    Attributes:
        values: name -> (m, n) float64, in the names of `COLUMNS`: `mse`, `cosine`, `distance` and, for images,
            `style_accuracy` and `edge_f1`.
        features: (m, n, d), for KID and the Frechet distance.
    """

    values: dict[str, Tensor]
    features: Tensor = field(repr=False)


class TaskJudge:
    """Measures images against the truths of one task.

    Args:
        library: the emoji data set.
        task: which.
        cases: the task's.
        judges: the networks that judge.
    """

    def __init__(self, library: EmojiLibrary, task: Task, cases: Sequence[TableCase], judges: Judges) -> None:
        self.library, self.task, self.cases, self.judges = library, task, cases, judges
        self.truth = to_pixels(truths(library, task.target, cases))
        self.features = embed_images(judges.kid_features, self.truth)
        self.edges = None
        if task.target == "image":
            lines = self.truth if task.aligned else to_pixels(queries(library, task, cases))
            self.edges = edges(lines.float() / 255)

    def control(self, name: str) -> Rows:
        """One of `CONTROLS` in the output's place: fresh real images, the query, or the first context image.

        `truth` gives the truths' features alone, which those of all cells are compared with.
        """
        library, cases = self.library, self.cases
        if name == "truth":
            return Rows({}, self.features[None])
        if name == "real":
            fresh = [_Fresh(case.style, case.fresh) for case in cases]
            images = truths(library, self.task.target, fresh)
        elif name == "copy_query":
            images = queries(library, self.task, cases)
        else:
            images = contexts(library, self.task, cases, 1)[:, 0]
        rows = self.measure(to_pixels(images)[None])
        if name == "real":
            # Other emoji: nothing that compares with the truth picture by picture.
            rows.values = {key: rows.values[key] for key in ("style_accuracy",) if key in rows.values}
        return rows

    def measure(self, images: Tensor) -> Rows:
        """Images (m, n, 3, H, W), uint8 -> figures of each."""
        truth = self.truth.float() / 255
        found: list[dict[str, Tensor]] = []
        features = []
        for run in images:
            pixels = run.float() / 255
            embedded = embed_images(self.judges.kid_features, run)
            values = {"cosine": functional.cosine_similarity(embedded.double(), self.features.double())}
            if self.task.aligned:
                sums, counts = squared_error(pixels, truth)
                values["mse"] = sums / counts
            values["distance"] = perceptual_distance(self.judges.style_features, pixels, truth, self.task.aligned)
            if self.edges is not None:
                values["edge_f1"] = edge_f1(edges(pixels), self.edges)
                styles = [case.style for case in self.cases]
                middle = embed_images(self.judges.style_features, run)
                values["style_accuracy"] = self.judges.style_probe.correct(middle, styles)
            found.append({name: value.double() for name, value in values.items()})
            features.append(embedded)
        joined = {name: torch.stack([values[name] for values in found]) for name in found[0]}
        return Rows(joined, torch.stack(features))


@dataclass(frozen=True)
class _Fresh:
    """Just enough of a case for `truths`."""

    style: str
    key: str


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


def judged_task(cell: Cell) -> str:
    """Whose truths a cell is measured against; the VAE's images belong to a target, which any task may make."""
    if cell.setting != "vae":
        return cell.task
    return "softedge" if cell.task == "image" else f"to-{cell.task}"


@dataclass(frozen=True)
class CellTask:
    """What a worker is to measure: a cell of a model, or a control of a task (`folder` None)."""

    cell: Cell
    folder: Path | None = None


class CellMeasurer:
    """Measures cells; keeps what it measured on disk, and what all cells of a task share in memory."""

    def __init__(
        self,
        data: Path,
        cases: dict[str, list[TableCase]],
        judges: Judges,
        out: Path,
        seeds: int,
        batch_size: int,
    ) -> None:
        self.data, self.cases, self.judges = data, cases, judges
        self.out, self.seeds, self.batch_size = out, seeds, batch_size
        self.judged: dict[tuple[str, str], TaskJudge] = {}

    def __call__(self, job: CellTask) -> Rows:
        cell, owner = job.cell, job.folder.name if job.folder else "controls"
        total = len(cell_cases(cell, self.cases))
        seeds = cell_seeds(cell, self.seeds) if job.folder else 1
        path = self.out / owner / f"{cell.name}-n{total}-m{seeds}.safetensors"
        if path.exists():
            return _load_rows(path)
        judge = self._judge(cell)
        if job.folder is None:
            rows = judge.control(cell.setting)
        else:
            runs = [load_cell(job.folder, cell, total, seed, self.batch_size) for seed in range(seeds)]
            rows = judge.measure(torch.stack(runs))
        _save_rows(path, rows)
        return rows

    def _judge(self, cell: Cell) -> TaskJudge:
        from ...data.library import EmojiLibrary

        name = judged_task(cell)
        key = (cell.part, name)
        if key not in self.judged:
            # Cells come task by task: only the last judge is worth its memory.
            self.judged.clear()
            chosen = cell_cases(cell, self.cases)
            self.judged[key] = TaskJudge(EmojiLibrary(self.data), TASKS[name], chosen, self.judges)
        return self.judged[key]


def _save_rows(path: Path, rows: Rows) -> None:
    tensors = {f"values.{name}": value.contiguous() for name, value in rows.values.items()}
    write_tensors(path, {**tensors, "features": rows.features.contiguous()})


def _load_rows(path: Path) -> Rows:
    from safetensors.torch import load_file

    tensors = load_file(path)
    features = tensors.pop("features")
    return Rows({name.removeprefix("values."): value for name, value in tensors.items()}, features)
