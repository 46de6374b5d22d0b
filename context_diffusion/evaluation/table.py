"""`context-diffusion evaluate table`: the paper's protocol for a checkpoint, or for several side by side.

Generation goes on where it stopped, and may be shared: run one process with `--shard 0/2` and one with
`--shard 1/2`; when every image is there, a run of either measures.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ContextDiffusionError
from .cases.selection import Selection
from .cases.tasks import PART_NAMES, SETTINGS, TASK_GROUPS, TASKS
from .options import add_run, sampling

if TYPE_CHECKING:
    from .run import Model

# Raised when the cases, the noise or the requests change: results of another version are not mixed in.
VERSION = 1

_FULL = {field: getattr(Selection, field) for field in ("tasks", "settings", "ks", "count", "seeds")}
_QUICK = {
    "tasks": ("softedge", "to-softedge", "sketch"),
    "settings": ("cp", "c", "p", "shuffled"),
    "ks": (1, 3),
    "count": 20,
    "seeds": 1,
}
# Images of each style that the style classifier is fitted on.
_PER_STYLE = {False: 600, True: 150}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command; what --quick changes has no default here."""
    add_run(parser)
    parser.add_argument(
        "--against",
        nargs="+",
        type=Path,
        metavar="MODEL",
        default=[],
        help="other checkpoints: adds their rows, and ratios and win rates of --model against each",
    )
    parser.add_argument("--quick", action="store_true", help="a small table in minutes, to see that all works")
    names = f"{', '.join(TASK_GROUPS)}, or some of {', '.join(TASKS)} (default all)"
    parser.add_argument("--tasks", nargs="+", metavar="TASK", help=names)
    parser.add_argument("--settings", nargs="+", metavar="NAME", help=f"some of {', '.join(SETTINGS)} (default all)")
    parser.add_argument("--k", nargs="+", type=int, metavar="K", help="context images (default 1 2 3 5 8)")
    parser.add_argument(
        "--curve-tasks",
        nargs="*",
        metavar="TASK",
        help="tasks made with every k (default softedge); the others with 3, or the k nearest to it",
    )
    parser.add_argument(
        "--parts", nargs="+", default=list(PART_NAMES), metavar="PART", help=f"of {', '.join(PART_NAMES)}"
    )
    parser.add_argument("--count", type=int, help="images in each part (default 168)")
    parser.add_argument("--seeds", type=int, help="runs with other noise (default 3)")


def select(options: argparse.Namespace) -> Selection:
    """What the options ask for.

    Raises:
        ContextDiffusionError: an unknown name, or a number out of range.
    """
    wishes = {"tasks": _tasks(options.tasks), "settings": options.settings, "ks": options.k}
    wishes |= {"count": options.count, "seeds": options.seeds}
    chosen = dict(_QUICK if options.quick else _FULL)
    chosen |= {name: value for name, value in wishes.items() if value is not None}
    curve = _tasks(options.curve_tasks)
    curve = [name for name in Selection.curve_tasks if name in chosen["tasks"]] if curve is None else curve
    return Selection(
        tasks=tuple(dict.fromkeys(chosen["tasks"])),
        # In the table's order; the selection names the unknown ones.
        settings=tuple(sorted(set(chosen["settings"]), key=(*SETTINGS, *chosen["settings"]).index)),
        ks=tuple(sorted(set(chosen["ks"]))),
        curve_tasks=tuple(dict.fromkeys(curve)),
        parts=tuple(dict.fromkeys(options.parts)),
        count=chosen["count"],
        seeds=chosen["seeds"],
    )


def run(options: argparse.Namespace) -> bool:
    """Generate what is missing; measure when all is there.

    Returns:
        Whether the table was written.

    Raises:
        ContextDiffusionError: an option out of range, missing packages, weights or data, or a folder of another run.
    """
    selection = select(options)
    from .cases.table import TableCases
    from .figures import write_charts, write_grids
    from .judges import fit_judges
    from .measure import measure
    from .plan import Plan
    from .report import table_markdown, write_report
    from .run import log_written, make_images, read_inputs
    from .summary import table_parts

    library, squeezenet = read_inputs(options)
    case_set = TableCases(library, selection)
    plan = Plan(case_set, selection.seeds, options.batch_size)
    models = _models(options)
    measured = options.out / "measured" / ("quick" if options.quick else "full")
    if not make_images(plan, models, options, {measured: _measuring_facts(options)}):
        return False
    judges = fit_judges(library, squeezenet, _PER_STYLE[options.quick])
    rows = measure(plan, [model.folder for model in models], judges, measured, options.workers)
    named = [(model.label, model.folder) for model in models]
    parts = table_parts(case_set, rows, named, judges.kid_features.name)
    report = {
        "protocol": {
            "models": [model.label for model in models],
            "sha256": [model.digest for model in models],
            "tasks": [name for name in selection.tasks if any(name in part["tasks"] for part in parts.values())],
            "settings": list(selection.settings),
            "ks": list(selection.ks),
            "main_k": selection.main_k,
            "count": selection.count,
            "seeds": selection.seeds,
            **sampling(options),
            "features": judges.kid_features.name,
        },
        "parts": parts,
    }
    written = [*write_report(report, table_markdown(report), options.out, "table"), *write_charts(report, options.out)]
    log_written(written + write_grids(plan, named, options.out))
    return True


def _models(options: argparse.Namespace) -> list[Model]:
    """Every checkpoint and the folder of its images.

    Raises:
        ContextDiffusionError: two of them hold the same model.
    """
    from .run import Model, file_digest

    paths = [options.model, *options.against]
    flags = ["--model", *["--against"] * len(options.against)]
    digests = [file_digest(path) for path in paths]
    for index, digest in enumerate(digests):
        first = digests.index(digest)
        if first < index:
            raise ContextDiffusionError(
                f"{flags[first]} {paths[first]} and --against {paths[index]} hold the same model: give another"
            )
    stems = [path.stem for path in paths]
    names = [f"{stem}-{digest[:8]}" for stem, digest in zip(stems, digests, strict=True)]
    labels = stems if len(set(stems)) == len(stems) else names
    data = file_digest(options.data / "index.json")
    return [
        Model(label, flag, path, digest, options.out / "images" / name, _image_facts(options, digest, data))
        for label, flag, path, digest, name in zip(labels, flags, paths, digests, names, strict=True)
    ]


def _image_facts(options: argparse.Namespace, digest: str, data: str) -> dict:
    """What all images of one model's folder have in common, see `claim_folder`."""
    fingerprint = f"model {digest}, {options.steps} steps, guidance {options.guidance:g}, {options.precision}"
    # Euler is not named, so that images of before there was a choice still count.
    fingerprint += "" if options.sampler == "euler" else f", {options.sampler}"
    return {"fingerprint": fingerprint, "data": data, "version": VERSION, "batch_size": options.batch_size}


def _measuring_facts(options: argparse.Namespace) -> dict:
    """What all that was measured in one folder has in common, see `claim_folder`."""
    from .run import file_digest

    judged_by = {"squeezenet": file_digest(options.squeezenet), "classifier_images": _PER_STYLE[options.quick]}
    return judged_by | {"version": VERSION} | sampling(options) | {"data": file_digest(options.data / "index.json")}


def _tasks(names: Sequence[str] | None) -> list[str] | None:
    """Task names, groups spelled out."""
    if names is None:
        return None
    return [task for name in names for task in TASK_GROUPS.get(name, [name])]
