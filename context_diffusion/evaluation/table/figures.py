"""The pictures of a run: curves over k, bars with intervals, and grids of images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from ...files import write_atomically
from ...images import image_grid, save_image
from ..protocol import SETTING_NAMES
from .charts import Series, bar_chart, line_chart
from .generate import load_cell
from .pictures import contexts, queries, truths
from .plan import Cell, Selection
from .report import column_name
from .tasks import PART_NAMES, TASKS, task_cases

if TYPE_CHECKING:
    from ...data.library import EmojiLibrary
    from .cases import TableCase


def write_charts(report: dict, folder: Path) -> list[Path]:
    """Write `curve-TASK-FIGURE.png` and `bars-PART-FIGURE.png`.

    Args:
        report: of `table.json`.
        folder: of the pictures.
    """
    kid = f"kid_{report['protocol']['features']}"
    several = len(report["protocol"]["models"]) > 1
    charts = {}
    for name in report["protocol"]["tasks"]:
        figures = ("rmse",) if TASKS[name].kind == "reverse" else (kid, "style_accuracy")
        for figure in figures:
            series = _curves(report, name, figure, several)
            if any(len(one.values) > 1 for one in series):
                title = f"{column_name(figure)}, {TASKS[name].title}"
                charts[f"curve-{name}-{figure}"] = line_chart(title, "context images", series)
    for part in report["parts"]:
        for figure, kinds in ((kid, ("forward", "drawing")), ("rmse", ("reverse",))):
            tasks = [name for name in report["protocol"]["tasks"] if TASKS[name].kind in kinds]
            series = _bars(report, part, tasks, figure, several)
            if tasks and series:
                title = f"{column_name(figure)}, {PART_NAMES[part]}"
                charts[f"bars-{part}-{figure}"] = bar_chart(title, tasks, series)
    return [_save(chart, folder / f"{name}.png") for name, chart in charts.items()]


def write_grids(
    library: EmojiLibrary,
    cases: dict[str, list[TableCase]],
    selection: Selection,
    models: Sequence[tuple[str, Path]],
    folder: Path,
    batch_size: int,
) -> list[Path]:
    """Write `grid-PART-TASK.png`, first seed: the first case of every style, with the outputs of each model.

    Args:
        library: the emoji data set.
        cases: of every part.
        selection: of the run.
        models: name and folder of images of each.
        folder: of the pictures.
        batch_size: of the run.
    """
    paths = []
    k = selection.main_k
    settings = [setting for setting in ("cp", "c", "p") if setting in selection.settings]
    for part in selection.parts:
        for name in selection.tasks:
            task = TASKS[name]
            chosen = task_cases(task, cases[part])
            if not chosen:
                continue
            first = {case.style: position for position, case in reversed(list(enumerate(chosen)))}
            positions = sorted(first.values())
            made = {
                (model, setting): load_cell(
                    images, Cell(part, name, setting, 0 if setting == "p" else k), len(chosen), 0, batch_size
                )
                for model, images in models
                for setting in settings
            }
            rows = []
            for position in positions:
                case = [chosen[position]]
                row = [queries(library, task, case)[0], *contexts(library, task, case, k)[0]]
                row.append(truths(library, task.target, case)[0])
                rows.append(row + [images[position].float() / 255 for images in made.values()])
            labels = ["query", *["context"] * k, "truth"]
            for model, setting in made:
                labels.append(SETTING_NAMES[setting] if len(models) == 1 else f"{SETTING_NAMES[setting]}, {model}")
            paths.append(folder / f"grid-{part}-{name}.png")
            save_image(image_grid(rows, labels), paths[-1])
    return paths


def _curves(report: dict, task: str, figure: str, several: bool) -> list[Series]:
    """A line for each part, model and setting with context."""
    found: dict[str, dict[float, list]] = {}
    for part, content in report["parts"].items():
        for row in content["tasks"].get(task, {"rows": []})["rows"]:
            if row["setting"] in ("cp", "c") and figure in row["figures"]:
                name = f"{SETTING_NAMES[row['setting']]}, {PART_NAMES[part]}"
                name += f", {row['model']}" if several else ""
                found.setdefault(name, {})[row["k"]] = row["figures"][figure]
    return [Series(name, values) for name, values in found.items()]


def _bars(report: dict, part: str, tasks: Sequence[str], figure: str, several: bool) -> list[Series]:
    """A bar for each model and setting, at the table's k."""
    found: dict[str, dict[float, list]] = {}
    for position, task in enumerate(tasks):
        for row in report["parts"][part]["tasks"].get(task, {"rows": []})["rows"]:
            if row["setting"] not in ("cp", "c", "p", "vae") or figure not in row["figures"]:
                continue
            if row["k"] in (0, report["protocol"]["main_k"]):
                name = SETTING_NAMES[row["setting"]] + (f", {row['model']}" if several else "")
                found.setdefault(name, {})[position] = row["figures"][figure]
    return [Series(name, values) for name, values in found.items()]


def _save(chart: Image.Image, path: Path) -> Path:
    with write_atomically(path) as scratch:
        chart.save(scratch, format="PNG")
    return path
