"""The pictures of a run: grids of what was asked for and made, charts over k and tasks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image
from torch import Tensor

from ..files import write_atomically
from ..images import image_grid, save_image
from .cases.case import Case, Cell
from .cases.heldout import PART_SETTINGS, TASK
from .cases.pictures import contexts, queries, truths
from .cases.tasks import PART_NAMES, SETTING_NAMES, TASKS, Task
from .charts import Series, bar_chart, line_chart
from .generate import load_images
from .report import column_name

if TYPE_CHECKING:
    from ..data.library import EmojiLibrary
    from .plan import Plan

# The settings that are shown, and compared with the paper.
SHOWN = ("cp", "c", "p")


def write_heldout_grid(plan: Plan, images: Path, out: Path) -> Path:
    """Write `heldout-grid.png`, first seed: the middle case of every style, and three transforms.

    The choice depends on the protocol alone, never on what was made.

    Args:
        plan: of the run, its cases `HeldoutCases`.
        images: folder of its generated images.
        out: folder of the picture.
    """
    case_set, rows = plan.case_set, []
    for part, cases in case_set.parts.items():
        made = {s: load_images(plan, images, case_set.cell(part, s), 0) for s in SHOWN if s in PART_SETTINGS[part]}
        middles = [positions[len(positions) // 2] for positions in _by_style(cases)]
        for position in middles[:3] if part == "transforms" else middles:
            outputs = [made[setting][position].float() / 255 if setting in made else None for setting in SHOWN]
            rows.append([*_asked(case_set.library, TASKS[TASK], cases[position]), *outputs])
    path = out / "heldout-grid.png"
    save_image(image_grid(rows, _labels(case_set.k, [SETTING_NAMES[setting] for setting in SHOWN])), path)
    return path


def write_grids(plan: Plan, models: Sequence[tuple[str, Path]], out: Path) -> list[Path]:
    """Write `grid-PART-TASK.png`, first seed: the first case of every style, with the outputs of each model.

    Args:
        plan: of the run, its cases `TableCases`.
        models: name and folder of images of each.
        out: folder of the pictures.
    """
    paths = []
    selection = plan.case_set.selection
    settings = [setting for setting in SHOWN if setting in selection.settings]
    for part in selection.parts:
        for name in selection.tasks:
            cases = plan.case_set.cases(Cell(part, name, "truth"))
            if not cases:
                continue
            made = {}
            for model, folder in models:
                for setting in settings:
                    cell = Cell(part, name, setting, 0 if setting == "p" else selection.main_k)
                    label = SETTING_NAMES[setting] + ("" if len(models) == 1 else f", {model}")
                    made[label] = load_images(plan, folder, cell, 0)
            rows = []
            for position in sorted(positions[0] for positions in _by_style(cases)):
                asked = _asked(plan.case_set.library, TASKS[name], cases[position], selection.main_k)
                rows.append([*asked, *(images[position].float() / 255 for images in made.values())])
            paths.append(out / f"grid-{part}-{name}.png")
            save_image(image_grid(rows, _labels(selection.main_k, made)), paths[-1])
    return paths


def write_charts(report: dict, out: Path) -> list[Path]:
    """Write `curve-TASK-FIGURE.png` and `bars-PART-FIGURE.png`.

    Args:
        report: of `table.json`.
        out: folder of the pictures.
    """
    tasks, kid = report["protocol"]["tasks"], f"kid_{report['protocol']['features']}"
    charts = {}
    for name in tasks:
        for figure in ("rmse",) if TASKS[name].kind == "reverse" else (kid, "style_accuracy"):
            series = _curves(report, name, figure)
            if any(len(line.values) > 1 for line in series):
                title = f"{column_name(figure)}, {TASKS[name].title}"
                charts[f"curve-{name}-{figure}"] = line_chart(title, "context images", series)
    for part in report["parts"]:
        for figure, kinds in ((kid, ("forward", "drawing")), ("rmse", ("reverse",))):
            chosen = [name for name in tasks if TASKS[name].kind in kinds]
            series = _bars(report, part, chosen, figure)
            if series:
                title = f"{column_name(figure)}, {PART_NAMES[part]}"
                charts[f"bars-{part}-{figure}"] = bar_chart(title, chosen, series)
    return [_save(chart, out / f"{name}.png") for name, chart in charts.items()]


def _by_style(cases: Sequence[Case]) -> list[list[int]]:
    """The positions of each style's cases."""
    positions: dict[str, list[int]] = {}
    for position, case in enumerate(cases):
        positions.setdefault(case.style, []).append(position)
    return list(positions.values())


def _asked(library: EmojiLibrary, task: Task, case: Case, k: int | None = None) -> list[Tensor]:
    """Query, context images and truth of a case."""
    context = contexts(library, task, [case], k or len(case.context))[0]
    return [queries(library, task, [case])[0], *context, truths(library, task.target, [case])[0]]


def _labels(k: int, outputs: Sequence[str]) -> list[str]:
    return ["query", *["context"] * k, "truth", *outputs]


def _curves(report: dict, task: str, figure: str) -> list[Series]:
    """A line for each part, model and setting with context."""
    lines: dict[str, dict[float, list]] = {}
    for part, content in report["parts"].items():
        for row in _rows(content, task, figure, ("cp", "c")):
            name = f"{SETTING_NAMES[row['setting']]}, {PART_NAMES[part]}{_model(report, row)}"
            lines.setdefault(name, {})[row["k"]] = row["figures"][figure]
    return [Series(name, values) for name, values in lines.items()]


def _bars(report: dict, part: str, tasks: Sequence[str], figure: str) -> list[Series]:
    """A bar for each model and setting, at the table's k."""
    bars: dict[str, dict[float, list]] = {}
    for position, task in enumerate(tasks):
        for row in _rows(report["parts"][part], task, figure, (*SHOWN, "vae")):
            if row["k"] in (0, report["protocol"]["main_k"]):
                name = SETTING_NAMES[row["setting"]] + _model(report, row)
                bars.setdefault(name, {})[position] = row["figures"][figure]
    return [Series(name, values) for name, values in bars.items()]


def _rows(part: dict, task: str, figure: str, settings: Sequence[str]) -> list[dict]:
    rows = part["tasks"].get(task, {"rows": []})["rows"]
    return [row for row in rows if row["setting"] in settings and figure in row["figures"]]


def _model(report: dict, row: dict) -> str:
    """Names the model where there are several."""
    return f", {row['model']}" if len(report["protocol"]["models"]) > 1 else ""


def _save(chart: Image.Image, path: Path) -> Path:
    with write_atomically(path) as scratch:
        chart.save(scratch, format="PNG")
    return path
