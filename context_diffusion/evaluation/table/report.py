"""The table as JSON and as Markdown."""

from __future__ import annotations

import json
from pathlib import Path

from ...files import write_atomically
from ..protocol import SETTING_NAMES
from ..tables import format_figure, format_table
from .tasks import PART_NAMES, TASKS

CONTROL_NAMES = {
    "real": "other real images",
    "copy_query": "copy of the query",
    "copy_context": "copy of a context image",
}
_NAMES = {**SETTING_NAMES, **CONTROL_NAMES}


def column_name(figure: str) -> str:
    """A figure's name in tables: `kid_EffNetLite0` -> "KID-EffNetLite0"."""
    for prefix, name in (("kid_", "KID-"), ("frechet_", "Frechet-")):
        if figure.startswith(prefix):
            return name + figure.removeprefix(prefix)
    names = {"rmse": "RMSE", "cosine": "feature cosine", "distance": "SqueezeNet distance"}
    names |= {"style_accuracy": "style accuracy", "edge_f1": "edge F1"}
    return names[figure]


def markdown(report: dict) -> str:
    """The text of `table.md`: the paper's layout first, then every cell and comparison."""
    lines = ["# Evaluation table", ""]
    for name, value in report["protocol"].items():
        if value is not None:
            text = ", ".join(map(str, value)) if isinstance(value, list) else value
            lines.append(f"- {name.replace('_', ' ')}: {text}")
    lines += ["", "In brackets: 95% bootstrap intervals over codepoints. p: two-sided, paired.", ""]
    for part, found in report["parts"].items():
        lines += [f"## Held-out emoji, {PART_NAMES[part]}", ""]
        lines += _overview(report, found)
        if len(report["protocol"]["models"]) > 2:
            lines += _one_row_a_model(report, found)
        for name, task in found["tasks"].items():
            lines += [f"### {task['title']}", "", f"{task['cases']} images of {task['codepoints']} codepoints.", ""]
            lines += _rows(task["rows"])
            if task["comparisons"]:
                lines += format_table(
                    ["models", f"comparison, {name}", "", "p"],
                    [[row["model"], row["name"], _triple(row["value"]), _p(row["p"])] for row in task["comparisons"]],
                )
    return "\n".join(lines).rstrip() + "\n"


def write_table(report: dict, folder: Path) -> tuple[Path, Path]:
    """Write `table.json` and `table.md` into a folder, each whole or not at all."""
    paths = folder / "table.json", folder / "table.md"
    for path, text in zip(paths, (json.dumps(report, indent=2) + "\n", markdown(report)), strict=True):
        with write_atomically(path) as scratch:
            scratch.write_text(text, encoding="utf-8")
    return paths


def _overview(report: dict, part: dict) -> list[str]:
    """The paper's table: tasks down, settings across, the distance of sets for images and RMSE for maps."""
    protocol = report["protocol"]
    kid, settings = f"kid_{protocol['features']}", [s for s in ("cp", "c", "p") if s in protocol["settings"]]
    if not settings:
        return []
    rows = []
    for name, task in part["tasks"].items():
        figure = "rmse" if TASKS[name].kind == "reverse" else kid
        for model in protocol["models"]:
            cells = [_cell(task["rows"], model, s, 0 if s == "p" else protocol["main_k"], figure) for s in settings]
            rows.append([task["title"], model, column_name(figure), *cells])
        first, *others = protocol["models"]
        found = {(row["model"], row["name"]): row["value"] for row in task["comparisons"]}
        places = [s if s == "p" else f"{s}, k = {protocol['main_k']}" for s in settings]
        for other in others:
            rates = [_triple(found[f"{first} against {other}", f"win rate {place}"]) for place in places]
            rows.append([task["title"], f"{first} wins over {other}", "share", *rates])
    return format_table(["task", "model", "figure", *(SETTING_NAMES[s] for s in settings)], rows)


def _one_row_a_model(report: dict, part: dict) -> list[str]:
    """The tables of ablations, one a task."""
    lines = []
    for name, task in part["tasks"].items():
        columns = _model_columns(report["protocol"], name, task)
        shown = {column: cells for column, cells in columns.items() if any(cells)}
        if shown:
            rows = zip(report["protocol"]["models"], *shown.values(), strict=True)
            lines += [f"### {task['title']}, one row a model", ""]
            lines += format_table(["model", *shown], [list(row) for row in rows])
    return lines


def _model_columns(protocol: dict, name: str, task: dict) -> dict[str, list[str]]:
    """How near, how much in style, and how much of that is the context's doing: a cell for each model."""
    k, models = protocol["main_k"], protocol["models"]
    figure = "rmse" if TASKS[name].kind == "reverse" else f"kid_{protocol['features']}"
    comparisons = {(row["model"], row["name"]): row["value"] for row in task["comparisons"]}

    def measured(setting: str, figure: str) -> list[str]:
        return [_cell(task["rows"], model, setting, k, figure) for model in models]

    def compared(names: list[str], comparison: str) -> list[str]:
        keys = [(name, comparison) for name in names]
        return [_triple(comparisons[key]) if key in comparisons else "" for key in keys]

    duels = [f"{models[0]} against {model}" for model in models]
    return {
        f"{column_name(figure)} C+P": measured("cp", figure),
        f"{column_name(figure)} C": measured("c", figure),
        "style accuracy C": measured("c", "style_accuracy"),
        "RMSE C / shuffled": compared(models, "rmse c / shuffled"),
        "style accuracy that shuffling loses": compared(models, "style accuracy above chance that shuffling loses"),
        f"{models[0]} wins C+P": compared(duels, f"win rate cp, k = {k}"),
        f"{models[0]} wins C": compared(duels, f"win rate c, k = {k}"),
    }


def _cell(rows: list[dict], model: str, setting: str, k: int, figure: str) -> str:
    for row in rows:
        if (row["model"], row["setting"], row["k"]) == (model, setting, k):
            return _triple(row["figures"][figure]) if figure in row["figures"] else ""
    return ""


def _rows(rows: list[dict]) -> list[str]:
    columns = list(dict.fromkeys(figure for row in rows for figure in row["figures"]))
    cells = []
    for row in rows:
        figures = [_triple(row["figures"][c]) if c in row["figures"] else "" for c in columns]
        cells.append([row["model"], _NAMES[row["setting"]], str(row["k"] or ""), *figures])
    return format_table(["model", "setting", "k", *map(column_name, columns)], cells)


def _triple(triple: list[float | None]) -> str:
    if triple[1] is None:
        # The Frechet distance carries no interval.
        return format_figure([triple[0], 0.0, 0.0]).partition(" ")[0]
    return format_figure(triple)


def _p(value: float | None) -> str:
    if value is None:
        return ""
    return "< .001" if value < 0.001 else f"{value:.3f}"
