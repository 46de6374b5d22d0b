"""Figures as Markdown tables and JSON."""

from __future__ import annotations

import json
from pathlib import Path

from ..files import write_atomically
from .protocol import SETTING_NAMES

_COLUMNS = {
    "rmse": "RMSE",
    "rmse_foreground": "RMSE foreground",
    "kid_EffNetLite0": "KID-EffNetLite0",
    "style_accuracy": "style accuracy",
    "edge_f1": "edge F1",
    "color_deviation": "color deviation",
    "palette_distance": "palette distance",
    "psnr": "PSNR dB",
    "ssim": "SSIM",
}
_PART_NAMES = {
    "seen": "Held-out emoji, train styles",
    "unseen": "Held-out emoji, unseen styles",
    "transforms": "Held-out emoji, held-out families of style transforms",
}
_ROWS = ("cp", "c", "p", "shuffled", "query_only", "vae", "real")


def format_figure(triple: list[float]) -> str:
    """[value, low, high] -> text with as many decimals as its size needs."""
    value = triple[0]
    decimals = 1 if abs(value) >= 10 else 4 if abs(value) < 0.05 else 3
    return f"{value:.{decimals}f} [{triple[1]:.{decimals}f}, {triple[2]:.{decimals}f}]"


def markdown(report: dict) -> str:
    """The tables of `heldout.md`.

    Args:
        report: `protocol`, `parts` as `summarise` returns them and, where measured, `probes`.
    """
    protocol = report["protocol"]
    lines = ["# Held-out figures", ""]
    lines += [f"- {name.replace('_', ' ')}: {value}" for name, value in protocol.items()]
    lines += ["", "In brackets: 95% bootstrap intervals over codepoints.", ""]
    for part, found in report["parts"].items():
        lines += [
            f"## {_PART_NAMES[part]}",
            "",
            f"{found['cases']} images of {found['codepoints']} codepoints.",
            "",
        ]
        settings = found["settings"]
        columns = [name for name in _COLUMNS if any(name in figures for figures in settings.values())]
        lines += format_table(
            ["setting", *(_COLUMNS[name] for name in columns)],
            [
                [
                    SETTING_NAMES[row],
                    *(format_figure(settings[row][c]) if c in settings[row] else "" for c in columns),
                ]
                for row in _ROWS
                if row in settings
            ],
        )
        lines += format_table(["ratio", ""], [[name, format_figure(value)] for name, value in found["ratios"].items()])
    if "probes" in report:
        lines += ["## Linear probes, accuracy on held-out emoji", ""]
        sources = list(next(iter(report["probes"].values())))
        rows = [[label, *(format_figure(found[s]) for s in sources)] for label, found in report["probes"].items()]
        lines += format_table(["label", *sources], rows)
    return "\n".join(lines).rstrip() + "\n"


def write_report(report: dict, folder: str | Path) -> tuple[Path, Path]:
    """Write `heldout.json` and `heldout.md` into a folder, each whole or not at all."""
    paths = Path(folder) / "heldout.json", Path(folder) / "heldout.md"
    for path, text in zip(paths, (json.dumps(report, indent=2) + "\n", markdown(report)), strict=True):
        with write_atomically(path) as scratch:
            scratch.write_text(text, encoding="utf-8")
    return paths


def format_table(head: list[str], rows: list[list[str]]) -> list[str]:
    """A Markdown table as lines, an empty one at its end."""
    lines = [head, ["---"] * len(head), *rows]
    return [*("| " + " | ".join(cells) + " |" for cells in lines), ""]
