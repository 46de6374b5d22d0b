"""From a finished run to its report: everything measured, every figure and every comparison."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..summary import Judges
from ..workers import parallel_map
from .compare import Key, between_models, estimates, within_model
from .measure import CONTROLS, CellMeasurer, CellTask, Rows, judged_task
from .plan import Cell, Selection, cell_cases
from .tasks import TASKS, task_cases

if TYPE_CHECKING:
    from ...data.library import EmojiLibrary
    from .cases import TableCase


def summarise_table(
    library: EmojiLibrary,
    cases: dict[str, list[TableCase]],
    selection: Selection,
    models: Sequence[tuple[str, Path]],
    judges: Judges,
    out: Path,
    *,
    batch_size: int = 32,
    workers: int = 1,
    progress: bool | None = None,
) -> dict:
    """The parts of the report.

    Args:
        library: the emoji data set.
        cases: of every part.
        selection: of the run.
        models: name and folder of images of each, the one in question first.
        judges: from `fit_judges`.
        out: folder for what was measured, which a later run reads instead of measuring again.
        batch_size: as generated.
        workers: processes that measure.
        progress: show a bar; None does on a terminal only.

    Returns:
        part -> {cases, tasks: {task: {title, cases, codepoints, rows, comparisons}}}.

    Raises:
        ContextDiffusionError: images are missing.
    """
    measured = _measure(
        CellMeasurer(library.folder, cases, judges, out, selection.seeds, batch_size),
        _jobs(selection, cases, [folder for _, folder in models]),
        workers,
        progress,
    )
    report = {}
    for part in selection.parts:
        tasks = {}
        for name in selection.tasks:
            chosen = task_cases(TASKS[name], cases[part])
            if len(chosen) < 2:
                continue
            rows = _task_rows(part, name, cases[part], selection, models, measured)
            truth = measured[CellTask(Cell(part, name, "truth", 0))]
            tasks[name] = _task_report(library, name, chosen, rows, truth, selection, models, judges)
        report[part] = {"cases": len(cases[part]), "tasks": tasks}
    return report


def _jobs(selection: Selection, cases: dict[str, list[TableCase]], folders: Sequence[Path]) -> list[CellTask]:
    """Everything that is measured, what shares a truth side by side."""
    jobs = [CellTask(cell, folder) for folder in folders for cell in selection.cells()]
    jobs += [
        CellTask(Cell(part, task, control, 0))
        for part in selection.parts
        for task in selection.tasks
        for control in ("truth", *CONTROLS)
    ]
    # A distance of sets needs two; few cases have a drawing of another style for a query.
    jobs = [job for job in jobs if len(cell_cases(job.cell, cases)) > 1]
    return sorted(jobs, key=lambda job: (job.cell.part, judged_task(job.cell)))


def _measure(
    measurer: CellMeasurer, jobs: Sequence[CellTask], workers: int, progress: bool | None
) -> dict[CellTask, Rows]:
    from tqdm import tqdm

    hide = None if progress is None else not progress
    with parallel_map(measurer, workers) as run:
        found = list(tqdm(run(jobs), desc="measure", total=len(jobs), disable=hide))
    return dict(zip(jobs, found, strict=True))


def _task_rows(
    part: str,
    name: str,
    cases: Sequence[TableCase],
    selection: Selection,
    models: Sequence[tuple[str, Path]],
    measured: dict[CellTask, Rows],
) -> dict[Key, Rows]:
    """The rows of one task: each model's cells and VAE, then the controls."""
    task = TASKS[name]
    rows: dict[Key, Rows] = {}
    chosen = set(task_cases(task, cases))
    index = torch.tensor([position for position, case in enumerate(cases) if case in chosen], dtype=torch.int64)
    for label, folder in models:
        for cell in selection.cells():
            if cell.part == part and cell.task == name and cell.setting != "vae":
                rows[label, cell.setting, cell.k] = measured[CellTask(cell, folder)]
        vae = _subset(measured[CellTask(Cell(part, task.target, "vae", 0), folder)], index)
        if not task.aligned:
            # It was measured against the truth's layout, which is not asked for here.
            vae.values = {key: value for key, value in vae.values.items() if key in ("cosine", "style_accuracy")}
        rows[label, "vae", 0] = vae
    for control in CONTROLS:
        rows["", control, 0] = measured[CellTask(Cell(part, name, control, 0))]
    return rows


def _task_report(
    library: EmojiLibrary,
    name: str,
    cases: Sequence[TableCase],
    rows: dict[Key, Rows],
    truth: Rows,
    selection: Selection,
    models: Sequence[tuple[str, Path]],
    judges: Judges,
) -> dict:
    groups = [case.key for case in cases]
    found = {key: estimates(one, truth, groups, judges.kid_features.name) for key, one in rows.items()}
    chance = 1 / len(library.styles)
    comparisons = [row for label, _ in models for row in within_model(found, rows, label, groups, selection, chance)]
    for other, _ in models[1:]:
        comparisons += between_models(found, rows, (models[0][0], other), groups)
    return {
        "title": TASKS[name].title,
        "cases": len(cases),
        "codepoints": len(set(groups)),
        "rows": [
            {
                "model": model,
                "setting": setting,
                "k": k,
                "figures": {figure: estimate.triple() for figure, estimate in figures.items()},
            }
            for (model, setting, k), figures in found.items()
        ],
        "comparisons": comparisons,
    }


def _subset(rows: Rows, index: Tensor) -> Rows:
    return Rows({name: value[:, index] for name, value in rows.values.items()}, rows.features[:, index])
