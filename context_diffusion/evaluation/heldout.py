"""`context-diffusion evaluate heldout`: the held-out figures of a model, from one command.

Generation goes on where it stopped, and may be shared: run one process with `--shard 0/2` and one with
`--shard 1/2`; when every image is there, a run of either measures.
"""

from __future__ import annotations

import argparse

from ..errors import ContextDiffusionError
from ..ranges import whole_number
from .options import add_run, sampling


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    add_run(parser)
    parser.add_argument("--seeds", type=whole_number(1), default=3, help="runs with other noise (default 3)")
    parser.add_argument("--seen", type=whole_number(0), default=630, help="images in the train styles")
    parser.add_argument("--unseen", type=whole_number(0), default=320, help="images in the unseen styles")
    parser.add_argument(
        "--transforms", type=whole_number(0), default=320, help="images under held-out style transforms"
    )


def run(options: argparse.Namespace) -> bool:
    """Generate what is missing; measure when all is there.

    Returns:
        Whether the figures were written.

    Raises:
        ContextDiffusionError: an option out of range, missing packages, weights or data, or a folder of another run.
    """
    _check(options)
    from .cases.heldout import HeldoutCases, heldout_cases
    from .encoder_probes import probe_encoder
    from .figures import write_heldout_grid
    from .judges import fit_judges
    from .measure import measure
    from .plan import Plan
    from .report import heldout_markdown, write_report
    from .run import Model, file_digest, load_for_sampling, log_written, make_images, read_inputs
    from .summary import heldout_parts

    library, squeezenet = read_inputs(options)
    case_set = HeldoutCases(library, heldout_cases(library, options.seen, options.unseen, options.transforms))
    plan = Plan(case_set, options.seeds, options.batch_size)
    digest = file_digest(options.model)
    images = options.out / "images"
    facts = {"fingerprint": _fingerprint(digest, options), "cases": case_set.digest(), "batch_size": options.batch_size}
    if not make_images(plan, [Model("held-out", "--model", options.model, digest, images, facts)], options):
        return False
    judges = fit_judges(library, squeezenet)
    rows = measure(plan, [images], judges, None, options.workers)
    report = {
        "protocol": {
            "model": options.model.name,
            "sha256": digest,
            "query": "soft edge of the target",
            "context_images": case_set.k,
            "seeds": options.seeds,
            **sampling(options),
        },
        "parts": heldout_parts(case_set, rows, images, judges.kid_features.name),
    }
    image_encoder = load_for_sampling(options.model, options.precision).image_encoder
    if image_encoder is not None:
        report["probes"] = probe_encoder(image_encoder, library)
    grid = write_heldout_grid(plan, images, options.out)
    log_written([*write_report(report, heldout_markdown(report), options.out, "heldout"), grid])
    return True


def _fingerprint(digest: str, options: argparse.Namespace) -> str:
    """What images are made with, in a line: those of another line are not mixed in."""
    # fp32 is not named, so that images of before there was a choice still count.
    precision = "" if options.precision == "fp32" else f", {options.precision}"
    name = "Euler" if options.sampler == "euler" else options.sampler
    return f"model {digest}, {options.steps} {name} steps, guidance {options.guidance:g}{precision}"


def _check(options: argparse.Namespace) -> None:
    counts = {name: getattr(options, name) for name in ("seen", "unseen", "transforms")}
    for name, count in counts.items():
        # KID compares distributions: one image is none.
        if count == 1:
            raise ContextDiffusionError(f"--{name} is {count}: give 0 to leave the part out, or at least 2")
    if not any(counts.values()):
        raise ContextDiffusionError("--seen, --unseen and --transforms are all 0: nothing is left to measure")
