"""From generated images to figures: every metric of the held-out protocol, with intervals over codepoints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ..features.networks import EfficientNetLite0Features, SqueezeNetFeatures, embed_images
from .color import Regions, color_deviation, color_regions, palette_distance
from .heldout import load_images
from .layout import edge_f1, edges
from .metrics import psnr, squared_error, ssim
from .probes import LinearProbe, fit_probe
from .protocol import PART_SETTINGS, PARTS, Case, foregrounds, truths
from .statistics import Interval, kid_interval, mean_interval, ratio_of_means, rmse_interval, rmse_ratio
from .workers import parallel_map

if TYPE_CHECKING:
    from ..data.library import EmojiLibrary

# numerator, denominator: what reading the context, or adding the prompt, is worth
RMSE_RATIOS = (("c", "shuffled"), ("c", "query_only"), ("cp", "c"), ("cp", "p"))

# What says something about real images measured against themselves: ceilings and floors.
REAL_FIGURES = ("style_accuracy", "color_deviation")


@dataclass(frozen=True)
class Judges:
    """The frozen networks that judge, and the style classifier on top of one.

    Attributes:
        kid_features: of KID.
        style_features: of the style classifier.
        style_probe: fitted on train codepoints in all styles.
    """

    kid_features: EfficientNetLite0Features
    style_features: SqueezeNetFeatures
    style_probe: LinearProbe


@dataclass
class Measured:
    """Figures a sample of one part in one setting; with m seeds, rows are seed after seed, m * n of them.

    Attributes:
        groups: the codepoint of each row.
        whole: sums and counts of squared errors of whole images.
        foreground: the same of the foreground alone.
        rows: other figures by name, sums and counts; counts None for one value a row.
        features: (m, n, d), for KID.
    """

    groups: list[str]
    whole: tuple[Tensor, Tensor]
    foreground: tuple[Tensor, Tensor]
    rows: dict[str, tuple[Tensor, Tensor | None]]
    features: Tensor = field(repr=False)


def fit_judges(library: EmojiLibrary, squeezenet: SqueezeNetFeatures, per_style: int = 600, seed: int = 0) -> Judges:
    """Fit the style classifier on codepoints that are not held out, all nine styles.

    Args:
        library: the emoji data set.
        squeezenet: from `load_squeezenet`.
        per_style: images of each style.
        seed: of their choice.
    """
    rng = np.random.default_rng(seed)
    features, labels, groups = [], [], []
    for style in library.styles:
        pool = [key for key in library.keys[style] if not library.is_heldout(key)]
        keys = sorted(rng.choice(pool, size=min(per_style, len(pool)), replace=False).tolist())
        for start in range(0, len(keys), 64):
            features.append(embed_images(squeezenet, library.batch(style, keys[start : start + 64])))
        labels += [style] * len(keys)
        groups += keys
    probe = fit_probe(torch.cat(features), labels, groups)
    return Judges(EfficientNetLite0Features(), squeezenet, probe)


def summarise(
    library: EmojiLibrary,
    cases: Sequence[Case],
    out: str | Path,
    judges: Judges,
    *,
    seeds: int = 3,
    batch_size: int = 32,
    progress: bool | None = None,
    workers: int = 1,
) -> dict:
    """All figures of a finished run.

    Args:
        library: the emoji data set.
        cases: those that were generated.
        out: the folder of `generate_heldout`.
        judges: from `fit_judges`.
        seeds: how many were generated.
        batch_size: as generated.
        progress: show a bar; None does on a terminal only.
        workers: processes that measure, each some of the settings.

    Returns:
        part -> {cases, codepoints, settings: {setting: {figure: [value, low, high]}}, ratios: {...}}.

    Raises:
        ContextDiffusionError: images are missing.
    """
    measurer = _Measurer(library.folder, tuple(cases), Path(out), judges, batch_size)
    parts = [part for part in PARTS if any(case.part == part for case in cases)]
    tasks = [
        (part, setting, 1 if setting in ("real", "vae") else seeds)
        for part in parts
        for setting in ("real", "vae", *PART_SETTINGS[part])
    ]
    hide = None if progress is None else not progress
    with parallel_map(measurer, workers) as run:
        found = list(tqdm(run(tasks), desc="measure", total=len(tasks), disable=hide))
    report = {}
    for part in parts:
        chosen = [case for case in cases if case.part == part]
        settings = {setting: one for (of, setting, _), one in zip(tasks, found, strict=True) if of == part}
        kid = (judges.kid_features.name, settings["real"])
        report[part] = {
            "cases": len(chosen),
            "codepoints": len({case.key for case in chosen}),
            "settings": {
                name: _figures(one, *kid, only=REAL_FIGURES if name == "real" else None)
                for name, one in settings.items()
            },
            "ratios": {name: _triple(value) for name, value in _ratios(settings).items()},
        }
    return report


class _Measurer:
    """Measures one setting of one part; what all settings of a part share is made once a process."""

    def __init__(self, folder: Path, cases: tuple[Case, ...], out: Path, judges: Judges, batch_size: int) -> None:
        self.folder, self.cases, self.out = folder, cases, out
        self.judges, self.batch_size = judges, batch_size
        self.references: dict[str, _Reference] = {}

    def __call__(self, task: tuple[str, str, int]) -> Measured:
        from ..data.library import EmojiLibrary

        part, setting, seeds = task
        if part not in self.references:
            chosen = [case for case in self.cases if case.part == part]
            self.references[part] = _Reference(EmojiLibrary(self.folder), chosen, self.judges)
        reference = self.references[part]
        if setting == "real":
            return reference.measure(reference.truth[None])
        runs = [load_images(self.out, self.cases, part, setting, seed, self.batch_size) for seed in range(seeds)]
        return reference.measure(torch.stack(runs), similarity=setting == "vae")


class _Reference:
    """What all settings of one part are measured against."""

    def __init__(self, library: EmojiLibrary, cases: Sequence[Case], judges: Judges) -> None:
        self.judges = judges
        self.keys = [case.key for case in cases]
        self.styles = [case.style for case in cases]
        self.transformed = cases[0].transform is not None
        self.truth = (truths(library, cases) * 255).round().to(torch.uint8)
        self.mask = foregrounds(library, cases)
        self.edges = edges(self.truth.float() / 255)
        self.regions: Regions = color_regions(self.truth.float() / 255)

    def measure(self, images: Tensor, similarity: bool = False) -> Measured:
        """Images (m, n, 3, H, W) uint8 of m seeds -> figures; `similarity` adds PSNR and SSIM."""
        truth = self.truth.float() / 255
        parts: list[dict[str, tuple[Tensor, Tensor | None]]] = []
        features = []
        for run in images:
            pixels = run.float() / 255
            found: dict[str, tuple[Tensor, Tensor | None]] = {
                "whole": squared_error(pixels, truth),
                "foreground": squared_error(pixels, truth, self.mask),
                "edge_f1": (edge_f1(edges(pixels), self.edges), None),
                "color_deviation": color_deviation(pixels, self.regions),
                "palette_distance": (palette_distance(pixels, truth, self.mask, self.mask), None),
            }
            if not self.transformed:
                embedded = embed_images(self.judges.style_features, run)
                found["style_accuracy"] = (self.judges.style_probe.correct(embedded, self.styles), None)
            if similarity:
                found["psnr"] = (psnr(pixels, truth), None)
                found["ssim"] = (ssim(pixels, truth), None)
            parts.append(found)
            features.append(embed_images(self.judges.kid_features, run))
        joined = {}
        for name, (_, counts) in parts[0].items():
            sums = torch.cat([found[name][0] for found in parts])
            joined[name] = (sums, None if counts is None else torch.cat([found[name][1] for found in parts]))
        whole, foreground = joined.pop("whole"), joined.pop("foreground")
        return Measured(self.keys * len(images), whole, foreground, joined, torch.stack(features))


def _figures(
    measured: Measured, kid_name: str, real: Measured, only: Sequence[str] | None = None
) -> dict[str, list[float]]:
    groups = measured.groups
    figures = {
        "rmse": rmse_interval(*measured.whole, groups),
        "rmse_foreground": rmse_interval(*measured.foreground, groups),
        f"kid_{kid_name}": kid_interval(measured.features, real.features[0], real.groups),
    }
    for name, (sums, counts) in measured.rows.items():
        figures[name] = mean_interval(sums, groups, counts)
    return {name: _triple(value) for name, value in figures.items() if only is None or name in only}


def _ratios(settings: dict[str, Measured]) -> dict[str, Interval]:
    ratios = {}
    for first, second in RMSE_RATIOS:
        if first in settings and second in settings:
            a, b = settings[first], settings[second]
            ratios[f"rmse {first}/{second}"] = rmse_ratio(a.whole, b.whole, a.groups)
            ratios[f"rmse_foreground {first}/{second}"] = rmse_ratio(a.foreground, b.foreground, a.groups)
    for name, other in (("style_accuracy", "real"), ("edge_f1", "vae")):
        top, bottom = settings["c"], settings[other]
        if name in top.rows:
            # One seed against several: repeated, so that rows stay pairs.
            repeated = bottom.rows[name][0].repeat(len(top.groups) // len(bottom.groups))
            ratios[f"{name} c/{other}"] = ratio_of_means(top.rows[name][0], repeated, top.groups)
    return ratios


def _triple(interval: Interval) -> list[float]:
    return [interval.value, interval.low, interval.high]
