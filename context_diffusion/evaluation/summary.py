"""From everything that was measured to the report of a run: every figure and every comparison."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .cases.case import Cell
from .cases.heldout import PART_SETTINGS
from .cases.tasks import TASKS
from .compare import TaskFigures, between_models, within_model
from .estimates import Estimate, kid_estimate, mean_estimate
from .measure import Job, Rows

if TYPE_CHECKING:
    from .cases.heldout import HeldoutCases
    from .cases.table import TableCases

# numerator, denominator: what reading the context, or adding the prompt, is worth
RMSE_RATIOS = (("c", "shuffled"), ("c", "query_only"), ("cp", "c"), ("cp", "p"))
# The figure, and what may be expected of it at best.
CEILINGS = (("style_accuracy", "real"), ("edge_f1", "vae"))

_POOLED_ERRORS = {"rmse": "whole", "rmse_foreground": "foreground"}


def heldout_parts(case_set: HeldoutCases, measured: dict[Job, Rows], folder: Path, features: str) -> dict:
    """The parts of `heldout.json`.

    Args:
        case_set: of the run.
        measured: from `measure`.
        folder: of the images.
        features: name of those of the KID.

    Returns:
        part -> {cases, codepoints, settings: {setting: {figure: [value, low, high]}}, ratios: {...}}.
    """
    parts = {}
    for part, cases in case_set.parts.items():
        groups = [case.key for case in cases]
        rows = {"real": measured[Job(case_set.cell(part, "real"))]}
        for setting in ("vae", *PART_SETTINGS[part]):
            rows[setting] = measured[Job(case_set.cell(part, setting), folder)]
        pooled = {s: {name: _pooled(rows[s], name, groups) for name in rows[s].values} for s in rows}
        settings = {"real": pooled["real"]}
        for setting in list(rows)[1:]:
            kid = kid_estimate(rows[setting].features, rows["real"].features[0], groups, 500, own_pairs=True)
            settings[setting] = _heldout_figures(pooled[setting], {f"kid_{features}": kid})
        parts[part] = {
            "cases": len(cases),
            "codepoints": len(set(groups)),
            "settings": {setting: _triples(figures) for setting, figures in settings.items()},
            "ratios": _triples(_heldout_ratios(rows, pooled, groups)),
        }
    return parts


def _pooled(rows: Rows, name: str, groups: Sequence[str], runs: int | None = None) -> Estimate:
    """A mean over all runs and cases; one run may stand for several, so that rows stay pairs."""
    sums, counts = rows.values[name], rows.counts.get(name)
    runs = runs or len(sums)
    counts = None if counts is None else counts.expand(runs, -1).flatten()
    return mean_estimate(sums.expand(runs, -1).flatten(), list(groups) * runs, counts, samples=2000)


def _heldout_figures(pooled: dict[str, Estimate], kid: dict[str, Estimate]) -> dict[str, Estimate]:
    errors = {figure: pooled[name].root() for figure, name in _POOLED_ERRORS.items()}
    others = {name: estimate for name, estimate in pooled.items() if name not in _POOLED_ERRORS.values()}
    return errors | kid | others


def _heldout_ratios(
    rows: dict[str, Rows], pooled: dict[str, dict[str, Estimate]], groups: Sequence[str]
) -> dict[str, Estimate]:
    ratios = {}
    for first, second in RMSE_RATIOS:
        if first in pooled and second in pooled:
            for figure, name in _POOLED_ERRORS.items():
                ratios[f"{figure} {first}/{second}"] = pooled[first][name].over(pooled[second][name]).root()
    for name, ceiling in CEILINGS:
        if name in pooled["c"]:
            best = _pooled(rows[ceiling], name, groups, len(rows["c"].features))
            ratios[f"{name} c/{ceiling}"] = pooled["c"][name].over(best)
    return ratios


def table_parts(
    case_set: TableCases, measured: dict[Job, Rows], models: Sequence[tuple[str, Path]], features: str
) -> dict:
    """The parts of `table.json`.

    Args:
        case_set: of the run.
        measured: from `measure`.
        models: name and folder of images of each, the one in question first.
        features: name of those of the distances of sets.

    Returns:
        part -> {cases, tasks: {task: {title, cases, codepoints, rows, comparisons}}}.
    """
    parts = {}
    for part, cases in case_set.parts.items():
        tasks = {
            name: _table_task(case_set, part, name, measured, models, features)
            for name in case_set.selection.tasks
            # A distance of sets needs two.
            if len(case_set.cases(Cell(part, name, "truth"))) > 1
        }
        parts[part] = {"cases": len(cases), "tasks": tasks}
    return parts


def _table_task(
    case_set: TableCases,
    part: str,
    name: str,
    measured: dict[Job, Rows],
    models: Sequence[tuple[str, Path]],
    features: str,
) -> dict:
    truth = Cell(part, name, "truth")
    groups = [case.key for case in case_set.cases(truth)]
    rows = _table_rows(case_set, part, name, measured, models)
    task = TaskFigures.of(rows, measured[Job(truth)].features[0], groups, features)
    chance = 1 / len(case_set.library.styles)
    comparisons = [row for label, _ in models for row in within_model(task, label, case_set.selection.main_k, chance)]
    for other, _ in models[1:]:
        comparisons += between_models(task, models[0][0], other)
    return {
        "title": TASKS[name].title,
        "cases": len(groups),
        "codepoints": len(set(groups)),
        "rows": [
            {"model": model, "setting": setting, "k": k, "figures": _triples(figures)}
            for (model, setting, k), figures in task.figures.items()
        ],
        "comparisons": comparisons,
    }


def _table_rows(
    case_set: TableCases, part: str, name: str, measured: dict[Job, Rows], models: Sequence[tuple[str, Path]]
) -> dict[tuple[str, str, int], Rows]:
    """The rows of one task by model, setting and k: each model's cells and VAE, then the controls."""
    task, rows = TASKS[name], {}
    chosen = set(case_set.cases(Cell(part, name, "truth")))
    index = torch.tensor([row for row, case in enumerate(case_set.parts[part]) if case in chosen])
    for label, folder in models:
        for cell in case_set.cells():
            if (cell.part, cell.task) == (part, name) and cell.setting != "vae":
                rows[label, cell.setting, cell.k] = measured[Job(cell, folder)]
        vae = measured[Job(Cell(part, task.target, "vae"), folder)]
        # Where it was measured against the truth's layout, which a drawing does not ask for, it says nothing.
        names = vae.values if task.aligned else ("cosine", "style_accuracy")
        rows[label, "vae", 0] = _subset(vae, names, index)
    for cell in case_set.controls():
        if (cell.part, cell.task) == (part, name) and cell.setting != "truth":
            rows["", cell.setting, 0] = measured[Job(cell)]
    return rows


def _subset(rows: Rows, names: Sequence[str], index: Tensor) -> Rows:
    return Rows({name: rows.values[name][:, index] for name in names}, {}, rows.features[:, index])


def _triples(figures: dict[str, Estimate]) -> dict[str, list[float | None]]:
    return {name: estimate.triple() for name, estimate in figures.items()}
