"""`context-diffusion evaluate table`: the paper's protocol for a checkpoint, or for several side by side.

Generation goes on where it stopped, and may be shared: run one process with `--shard 0/2` and one with
`--shard 1/2`; when every image is there, a run of either measures.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import math
from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import ContextDiffusionError
from ..options import add_precision, add_sampler, load_sampler, parse_shard
from .plan import SETTINGS, Selection
from .tasks import PARTS, TASKS

if TYPE_CHECKING:
    from ...data.library import EmojiLibrary
    from ...sampling.flow import Sampler
    from .cases import TableCase
    from .plan import TableChunk

logger = logging.getLogger(__name__)

# Raised when the cases, the noise or the requests change: results of another version are not mixed in.
VERSION = 1

_TASK_GROUPS = {
    "in-domain": [name for name, task in TASKS.items() if task.in_domain],
    "out-of-domain": [name for name, task in TASKS.items() if not task.in_domain],
}
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
_PROBE_IMAGES = 4


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command; what --quick changes has no default here."""
    parser.add_argument("--model", type=Path, required=True, help="checkpoint, a .safetensors file")
    parser.add_argument(
        "--against",
        nargs="+",
        type=Path,
        metavar="MODEL",
        default=[],
        help="other checkpoints: adds their rows, and ratios and win rates of --model against each",
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of `context-diffusion data emoji`")
    parser.add_argument("--squeezenet", type=Path, required=True, help="SqueezeNet weights; see --fetch-squeezenet")
    parser.add_argument("--fetch-squeezenet", action="store_true", help="download those weights first if missing")
    parser.add_argument("--out", type=Path, required=True, help="folder for images, tables and figures")
    parser.add_argument("--quick", action="store_true", help="a small table in minutes, to see that all works")
    parser.add_argument("--plan", action="store_true", help="say what would be made and how long it takes, and stop")
    names = f"{', '.join(_TASK_GROUPS)}, or some of {', '.join(TASKS)} (default all)"
    parser.add_argument("--tasks", nargs="+", metavar="TASK", help=names)
    parser.add_argument("--settings", nargs="+", metavar="NAME", help=f"some of {', '.join(SETTINGS)} (default all)")
    parser.add_argument("--k", nargs="+", type=int, metavar="K", help="context images (default 1 2 3 5 8)")
    parser.add_argument(
        "--curve-tasks",
        nargs="*",
        metavar="TASK",
        help="tasks made with every k (default softedge); the others with 3, or the k nearest to it",
    )
    parser.add_argument("--parts", nargs="+", default=list(PARTS), metavar="PART", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--count", type=int, help="images in each part (default 168)")
    parser.add_argument("--seeds", type=int, help="runs with other noise (default 3)")
    add_sampler(parser)
    add_precision(parser)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--workers", type=int, default=2, help="processes that measure (default 2)")
    parser.add_argument("--shard", default="0/1", metavar="I/N", help="make every N-th chunk from the I-th on")


def select(options: argparse.Namespace) -> Selection:
    """What the options ask for.

    Raises:
        ContextDiffusionError: an unknown name, or a number out of range.
    """
    chosen = dict(_QUICK if options.quick else _FULL)
    given = {"tasks": _tasks(options.tasks), "settings": options.settings, "ks": options.k}
    given |= {"count": options.count, "seeds": options.seeds}
    chosen |= {name: value for name, value in given.items() if value is not None}
    curve = _tasks(options.curve_tasks)
    curve = [name for name in Selection.curve_tasks if name in chosen["tasks"]] if curve is None else curve
    return Selection(
        tasks=tuple(dict.fromkeys(chosen["tasks"])),
        settings=tuple(name for name in SETTINGS if name in chosen["settings"]) + _unknown(chosen["settings"]),
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
    for name in ("steps", "batch_size", "workers"):
        if getattr(options, name) < 1:
            raise ContextDiffusionError(f"--{name.replace('_', '-')} is {getattr(options, name)}: give at least 1")
    if not math.isfinite(options.guidance):
        raise ContextDiffusionError(f"--guidance is {options.guidance}: give a finite number such as 3")
    shard = parse_shard(options.shard)

    from ...data.library import EmojiLibrary
    from ...features.networks import EfficientNetLite0Features, load_squeezenet
    from ...features.weights import fetch_feature_weights
    from ..chunks import check_folder, claim_folder
    from ..summary import fit_judges
    from .cases import table_cases
    from .figures import write_charts, write_grids
    from .generate import generate_table
    from .plan import table_chunks
    from .report import write_table
    from .summary import summarise_table

    # First needed when all images are made, hours from here: a missing package is found out now.
    EfficientNetLite0Features()
    if options.fetch_squeezenet and not options.squeezenet.exists():
        fetch_feature_weights(options.squeezenet)
    squeezenet = load_squeezenet(options.squeezenet)
    library = EmojiLibrary(options.data)
    cases = {part: table_cases(library, part, selection.count) for part in selection.parts}
    most = min(len(case.context) for found in cases.values() for case in found)
    if max(selection.ks) > most:
        raise ContextDiffusionError(f"--k is {max(selection.ks)}: this data set has {most} context images for a case")
    chunks = table_chunks(selection.cells(), cases, selection.seeds, options.batch_size)
    data = _digest(options.data / "index.json")
    models = _named_models(options)
    folders = [(label, options.out / "images" / f"{path.stem}-{digest[:8]}") for label, path, digest in models]
    measured = options.out / "measured" / ("quick" if options.quick else "full")
    claims = {measured: _measuring_facts(options, data)}
    claims |= {
        folder: _image_facts(options, digest, data) for (_, folder), (_, _, digest) in zip(folders, models, strict=True)
    }
    if not options.plan:
        # All of them before any image is made and before any is claimed: an error here leaves all as it was.
        for folder, facts in claims.items():
            check_folder(folder, facts)
    complete = True
    for (label, folder), (_, path, _) in zip(folders, models, strict=True):
        model, sampler = load_sampler(path, options)
        _announce(label, chunks, folder, shard, sampler, library, cases)
        if not options.plan:
            for claimed in (measured, folder):
                claim_folder(claimed, claims[claimed])
            complete &= generate_table(model, sampler, library, cases, chunks, folder, shard)
        del model, sampler
    if options.plan:
        return False
    if not complete:
        logger.info("this shard is done; others are still to come")
        return False

    judges = fit_judges(library, squeezenet, _PER_STYLE[options.quick])
    parts = summarise_table(
        library,
        cases,
        selection,
        folders,
        judges,
        measured,
        batch_size=options.batch_size,
        workers=options.workers,
    )
    report = {
        "protocol": {
            "models": [label for label, _, _ in models],
            "sha256": [digest for _, _, digest in models],
            "tasks": [name for name in selection.tasks if any(name in found["tasks"] for found in parts.values())],
            "settings": list(selection.settings),
            "ks": list(selection.ks),
            "main_k": selection.main_k,
            "count": selection.count,
            "seeds": selection.seeds,
            **_sampling(options),
            "features": judges.kid_features.name,
        },
        "parts": parts,
    }
    written = [*write_table(report, options.out), *write_charts(report, options.out)]
    written += write_grids(library, cases, selection, folders, options.out, options.batch_size)
    for path in written:
        logger.info("wrote %s", path)
    return True


def _image_facts(options: argparse.Namespace, digest: str, data: str) -> dict:
    """What all images of one model's folder have in common, see `claim_folder`."""
    fingerprint = f"model {digest}, {options.steps} steps, guidance {options.guidance:g}, {options.precision}"
    # Euler is not named, so that images of before there was a choice still count.
    fingerprint += "" if options.sampler == "euler" else f", {options.sampler}"
    return {"fingerprint": fingerprint, "data": data, "version": VERSION, "batch_size": options.batch_size}


def _measuring_facts(options: argparse.Namespace, data: str) -> dict:
    """What all that was measured in one folder has in common, see `claim_folder`."""
    per_style = _PER_STYLE[options.quick]
    judged_by = {"squeezenet": _digest(options.squeezenet), "classifier_images": per_style, "version": VERSION}
    return judged_by | _sampling(options) | {"data": data}


def _sampling(options: argparse.Namespace) -> dict:
    return {name: getattr(options, name) for name in ("steps", "sampler", "guidance", "precision")}


def _announce(
    label: str,
    chunks: list[TableChunk],
    folder: Path,
    shard: tuple[int, int],
    sampler: Sampler,
    library: EmojiLibrary,
    cases: dict[str, list[TableCase]],
) -> None:
    """Say how many images each task takes and, from a first small batch, how long they will take."""
    from ..chunks import duration
    from .generate import seconds_per_image
    from .plan import cell_cases

    def size(some: list[TableChunk]) -> int:
        return sum(chunk.stop - chunk.start for chunk in some)

    logger.info("%s: %d images in all", label, size(chunks))
    sampled = [chunk for chunk in chunks if chunk.cell.setting != "vae"]
    for task in dict.fromkeys(chunk.cell.task for chunk in sampled):
        logger.info("  %-16s %d", task, size([one for one in sampled if one.cell.task == task]))
    missing = [chunk for chunk in chunks[shard[0] :: shard[1]] if not chunk.path(folder).exists()]
    made_by_model = [chunk for chunk in missing if chunk.cell.setting != "vae"]
    if not made_by_model:
        logger.info("  none is left to make in this process")
        return
    cell = made_by_model[0].cell
    seconds = seconds_per_image(sampler, library, cell_cases(cell, cases)[:_PROBE_IMAGES], cell)
    left = size(missing)
    logger.info("  %d left in this process at %.2f s an image: about %s", left, seconds, duration(left * seconds))


def _named_models(options: argparse.Namespace) -> list[tuple[str, Path, str]]:
    """(label, path, digest) of every checkpoint."""
    paths = [options.model, *options.against]
    digests = [_digest(path) for path in paths]
    for index, digest in enumerate(digests):
        first = digests.index(digest)
        if first < index:
            flag = "--against" if first else "--model"
            raise ContextDiffusionError(
                f"{flag} {paths[first]} and --against {paths[index]} hold the same model: give another"
            )
    stems = [path.stem for path in paths]
    if len(set(stems)) < len(stems):
        stems = [f"{stem}-{digest[:8]}" for stem, digest in zip(stems, digests, strict=True)]
    return list(zip(stems, paths, digests, strict=True))


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def _tasks(names: list[str] | None) -> list[str] | None:
    """Task names, groups spelled out."""
    if names is None:
        return None
    return [one for name in names for one in _TASK_GROUPS.get(name, [name])]


def _unknown(names: list[str]) -> tuple[str, ...]:
    """Names that are no settings: the selection says so."""
    return tuple(name for name in names if name not in SETTINGS)
