"""`python -m context_diffusion.evaluation`: the held-out figures of a model, from one command.

Generation goes on where it stopped, and may be shared: run one process with `--shard 0/2` and one with
`--shard 1/2`; when every image is there, a run of either measures.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import math
import sys
from pathlib import Path

from ..errors import ContextDiffusionError
from .options import add_precision, add_sampler, load_sampler, parse_shard

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("--model", type=Path, required=True, help="checkpoint, a .safetensors file")
    parser.add_argument("--data", type=Path, required=True, help="folder of `context-diffusion data emoji`")
    parser.add_argument("--squeezenet", type=Path, required=True, help="SqueezeNet weights; see --fetch-squeezenet")
    parser.add_argument("--fetch-squeezenet", action="store_true", help="download those weights first if missing")
    parser.add_argument("--out", type=Path, required=True, help="folder for images and figures")
    parser.add_argument("--shard", default="0/1", metavar="I/N", help="make every N-th chunk from the I-th on")
    parser.add_argument("--seeds", type=int, default=3)
    add_sampler(parser)
    add_precision(parser)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--workers", type=int, default=2, help="processes that measure (default 2)")
    parser.add_argument("--seen", type=int, default=630, help="images in the train styles")
    parser.add_argument("--unseen", type=int, default=320, help="images in the unseen styles")
    parser.add_argument("--transforms", type=int, default=320, help="images under held-out style transforms")


def sampling_settings(digest: str, options: argparse.Namespace) -> str:
    """What images are made with, in a line: those of another line are not mixed in."""
    # fp32 is not named, so that images of before there was a choice still count.
    precision = "" if options.precision == "fp32" else f", {options.precision}"
    name = "Euler" if options.sampler == "euler" else options.sampler
    return f"model {digest}, {options.steps} {name} steps, guidance {options.guidance:g}{precision}"


def run(options: argparse.Namespace) -> bool:
    """Generate what is missing; measure when all is there.

    Returns:
        Whether the figures were written.

    Raises:
        ContextDiffusionError: an option out of range, missing packages, weights or data, or a folder of another run.
    """
    _check_ranges(options)
    from ..data.library import EmojiLibrary
    from ..features.networks import EfficientNetLite0Features, load_squeezenet
    from ..features.weights import fetch_feature_weights
    from .encoder_probes import probe_encoder
    from .grid import write_heldout_grid
    from .heldout import generate_heldout
    from .protocol import heldout_cases
    from .summary import fit_judges, summarise
    from .tables import write_report

    shard = parse_shard(options.shard)
    # First needed when all images are made, hours from here: a missing package is found out now.
    EfficientNetLite0Features()
    if options.fetch_squeezenet and not options.squeezenet.exists():
        fetch_feature_weights(options.squeezenet)
    squeezenet = load_squeezenet(options.squeezenet)
    library = EmojiLibrary(options.data)
    model, sampler = load_sampler(options.model, options)
    cases = heldout_cases(library, options.seen, options.unseen, options.transforms)
    digest = hashlib.sha256(options.model.read_bytes()).hexdigest()[:16]
    complete = generate_heldout(
        model,
        sampler,
        library,
        cases,
        options.out / "images",
        fingerprint=sampling_settings(digest, options),
        seeds=options.seeds,
        batch_size=options.batch_size,
        shard=shard,
    )
    if not complete:
        logger.info("this shard is done; others are still to come")
        return False
    report = {
        "protocol": {
            "model": options.model.name,
            "sha256": digest,
            "query": "soft edge of the target",
            "context_images": len(cases[0].context),
            "seeds": options.seeds,
            "steps": options.steps,
            "sampler": options.sampler,
            "guidance": options.guidance,
            "precision": options.precision,
        },
        "parts": summarise(
            library,
            cases,
            options.out / "images",
            fit_judges(library, squeezenet),
            seeds=options.seeds,
            batch_size=options.batch_size,
            workers=options.workers,
        ),
    }
    if model.image_encoder is not None:
        report["probes"] = probe_encoder(model.image_encoder, library)
    grid = write_heldout_grid(library, cases, options.out / "images", options.out, options.batch_size)
    for path in (*write_report(report, options.out), grid):
        logger.info("wrote %s", path)
    return True


def _check_ranges(options: argparse.Namespace) -> None:
    for name in ("seeds", "steps", "batch_size", "workers"):
        value = getattr(options, name)
        if value < 1:
            raise ContextDiffusionError(f"--{name.replace('_', '-')} is {value}: give at least 1")
    if not math.isfinite(options.guidance):
        raise ContextDiffusionError(f"--guidance is {options.guidance}: give a finite number such as 3")
    counts = {name: getattr(options, name) for name in ("seen", "unseen", "transforms")}
    for name, count in counts.items():
        # KID compares distributions: one image is none.
        if count < 0 or count == 1:
            raise ContextDiffusionError(f"--{name} is {count}: give 0 to leave the part out, or at least 2")
    if not any(counts.values()):
        raise ContextDiffusionError("--seen, --unseen and --transforms are all 0: nothing is left to measure")


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(prog="python -m context_diffusion.evaluation", description=__doc__)
    add_arguments(parser)
    try:
        run(parser.parse_args(arguments))
    except ContextDiffusionError as error:
        logger.error("error: %s", error)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
