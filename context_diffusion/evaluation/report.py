"""A run's report as JSON and as Markdown."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from ..files import write_atomically
from .cases.tasks import PART_NAMES, SETTING_NAMES, TASKS

_FIGURES = {
    "rmse": "RMSE",
    "rmse_foreground": "RMSE foreground",
    "kid_EffNetLite0": "KID-EffNetLite0",
    "frechet_EffNetLite0": "Frechet-EffNetLite0",
    "cosine": "feature cosine",
    "distance": "SqueezeNet distance",
    "style_accuracy": "style accuracy",
    "edge_f1": "edge F1",
    "color_deviation": "color deviation",
    "palette_distance": "palette distance",
    "psnr": "PSNR dB",
    "ssim": "SSIM",
}
_HELDOUT_PARTS = {
    "seen": "Held-out emoji, train styles",
    "unseen": "Held-out emoji, unseen styles",
    "transforms": "Held-out emoji, held-out families of style transforms",
}
_CONTROLS = {
    "real": "other real images",
    "copy_query": "copy of the query",
    "copy_context": "copy of a context image",
}


def write_report(report: dict, text: str, folder: Path, name: str) -> tuple[Path, Path]:
    """Write `NAME.json` and `NAME.md` into a folder, each whole or not at all."""
    paths = folder / f"{name}.json", folder / f"{name}.md"
    for path, content in zip(paths, (json.dumps(report, indent=2) + "\n", text), strict=True):
        with write_atomically(path) as scratch:
            scratch.write_text(content, encoding="utf-8")
    return paths


def format_figure(triple: Sequence[float | None]) -> str:
    """[value, low, high] -> text with as many decimals as its size needs; without an interval the value alone."""
    value, low, high = triple
    decimals = 1 if abs(value) >= 10 else 4 if abs(value) < 0.05 else 3
    return f"{value:.{decimals}f}" + ("" if low is None else f" [{low:.{decimals}f}, {high:.{decimals}f}]")


def format_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table as lines, an empty one at its end."""
    lines = [head, ["---"] * len(head), *rows]
    return [*("| " + " | ".join(cells) + " |" for cells in lines), ""]


def column_name(figure: str) -> str:
    """A figure's name in tables: `kid_EffNetLite0` -> "KID-EffNetLite0"."""
    return _FIGURES[figure]


def heldout_markdown(report: dict) -> str:
    """The tables of `heldout.md`.

    Args:
        report: `protocol`, `parts` as `heldout_parts` returns them and, where measured, `probes`.
    """
    lines = _head("Held-out figures", report["protocol"], "")
    for part, content in report["parts"].items():
        settings = {name: content["settings"][name] for name in SETTING_NAMES if name in content["settings"]}
        columns = [name for name in _FIGURES if any(name in figures for figures in settings.values())]
        rows = [[SETTING_NAMES[name], *_cells(figures, columns)] for name, figures in settings.items()]
        ratios = [[name, format_figure(value)] for name, value in content["ratios"].items()]
        lines += [f"## {_HELDOUT_PARTS[part]}", "", _size(content), ""]
        lines += format_table(["setting", *map(column_name, columns)], rows) + format_table(["ratio", ""], ratios)
    if "probes" in report:
        lines += ["## Linear probes, accuracy on held-out emoji", ""]
        sources = list(next(iter(report["probes"].values())))
        rows = [[label, *_cells(accuracy, sources)] for label, accuracy in report["probes"].items()]
        lines += format_table(["label", *sources], rows)
    return _text(lines)


def table_markdown(report: dict) -> str:
    """The text of `table.md`: the paper's layout first, then every cell and comparison."""
    lines = _head("Evaluation table", report["protocol"], " p: two-sided, paired.")
    for part, content in report["parts"].items():
        lines += [f"## Held-out emoji, {PART_NAMES[part]}", "", *_overview(report["protocol"], content)]
        if len(report["protocol"]["models"]) > 2:
            lines += _one_row_a_model(report["protocol"], content)
        for name, task in content["tasks"].items():
            lines += [f"### {task['title']}", "", _size(task), "", *_every_row(task["rows"])]
            if task["comparisons"]:
                rows = [
                    [row["model"], row["name"], format_figure(row["value"]), _format_p(row["p"])]
                    for row in task["comparisons"]
                ]
                lines += format_table(["models", f"comparison, {name}", "", "p"], rows)
    return _text(lines)


def _head(title: str, protocol: dict, note: str) -> list[str]:
    lines = [f"# {title}", ""]
    for name, value in protocol.items():
        text = ", ".join(map(str, value)) if isinstance(value, list) else value
        lines.append(f"- {name.replace('_', ' ')}: {text}")
    return [*lines, "", f"In brackets: 95% bootstrap intervals over codepoints.{note}", ""]


def _size(content: dict) -> str:
    return f"{content['cases']} images of {content['codepoints']} codepoints."


def _text(lines: list[str]) -> str:
    return "\n".join(lines).rstrip() + "\n"


def _cells(figures: dict, columns: Sequence[str]) -> list[str]:
    return [format_figure(figures[name]) if name in figures else "" for name in columns]


def _main_figure(protocol: dict, task: str) -> str:
    """The distance of sets for images and RMSE for maps."""
    return "rmse" if TASKS[task].kind == "reverse" else f"kid_{protocol['features']}"


def _overview(protocol: dict, part: dict) -> list[str]:
    """The paper's table: tasks down, settings across."""
    settings = [setting for setting in ("cp", "c", "p") if setting in protocol["settings"]]
    if not settings:
        return []
    rows = []
    k, (first, *others) = protocol["main_k"], protocol["models"]
    places = [setting if setting == "p" else f"{setting}, k = {k}" for setting in settings]
    for name, task in part["tasks"].items():
        figure = _main_figure(protocol, name)
        for model in protocol["models"]:
            cells = [_cell(task["rows"], model, setting, k, figure) for setting in settings]
            rows.append([task["title"], model, column_name(figure), *cells])
        for other in others:
            rates = [_comparison(task, f"{first} against {other}", f"win rate {place}") for place in places]
            rows.append([task["title"], f"{first} wins over {other}", "share", *rates])
    return format_table(["task", "model", "figure", *(SETTING_NAMES[setting] for setting in settings)], rows)


def _one_row_a_model(protocol: dict, part: dict) -> list[str]:
    """The tables of ablations, one a task."""
    lines = []
    for name, task in part["tasks"].items():
        columns = {head: cells for head, cells in _model_columns(protocol, name, task).items() if any(cells)}
        if columns:
            rows = list(zip(protocol["models"], *columns.values(), strict=True))
            lines += [f"### {task['title']}, one row a model", "", *format_table(["model", *columns], rows)]
    return lines


def _model_columns(protocol: dict, name: str, task: dict) -> dict[str, list[str]]:
    """How near, how much in style, and how much of that is the context's doing: a cell for each model."""
    k, models, figure = protocol["main_k"], protocol["models"], _main_figure(protocol, name)

    def measured(setting: str, figure: str) -> list[str]:
        return [_cell(task["rows"], model, setting, k, figure) for model in models]

    def within(comparison: str) -> list[str]:
        return [_comparison(task, model, comparison) for model in models]

    def wins(setting: str) -> list[str]:
        return [_comparison(task, f"{models[0]} against {model}", f"win rate {setting}, k = {k}") for model in models]

    return {
        f"{column_name(figure)} C+P": measured("cp", figure),
        f"{column_name(figure)} C": measured("c", figure),
        "style accuracy C": measured("c", "style_accuracy"),
        "RMSE C / shuffled": within("rmse c / shuffled"),
        "style accuracy that shuffling loses": within("style accuracy above chance that shuffling loses"),
        f"{models[0]} wins C+P": wins("cp"),
        f"{models[0]} wins C": wins("c"),
    }


def _cell(rows: list[dict], model: str, setting: str, k: int, figure: str) -> str:
    place = (model, setting, 0 if setting == "p" else k)
    for row in rows:
        if (row["model"], row["setting"], row["k"]) == place:
            return format_figure(row["figures"][figure]) if figure in row["figures"] else ""
    return ""


def _comparison(task: dict, models: str, name: str) -> str:
    for row in task["comparisons"]:
        if (row["model"], row["name"]) == (models, name):
            return format_figure(row["value"])
    return ""


def _every_row(rows: list[dict]) -> list[str]:
    columns = list(dict.fromkeys(figure for row in rows for figure in row["figures"]))
    names = {**SETTING_NAMES, **_CONTROLS}
    cells = [
        [row["model"], names[row["setting"]], str(row["k"] or ""), *_cells(row["figures"], columns)] for row in rows
    ]
    return format_table(["model", "setting", "k", *map(column_name, columns)], cells)


def _format_p(value: float | None) -> str:
    if value is None:
        return ""
    return "< .001" if value < 0.001 else f"{value:.3f}"
