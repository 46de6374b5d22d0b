"""The options that both evaluations have."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..choices import SAMPLERS, SAMPLING_PRECISIONS
from ..ranges import number, whole_number


def add_run(parser: argparse.ArgumentParser) -> None:
    """What is measured, with what, how the images are sampled and where all of it goes."""
    parser.add_argument("--model", type=Path, required=True, help="checkpoint, a .safetensors file")
    parser.add_argument("--data", type=Path, required=True, help="folder of `context-diffusion data emoji`")
    parser.add_argument("--squeezenet", type=Path, required=True, help="SqueezeNet weights; see --fetch-squeezenet")
    parser.add_argument("--fetch-squeezenet", action="store_true", help="download those weights first if missing")
    parser.add_argument("--out", type=Path, required=True, help="folder for images, figures and pictures")
    parser.add_argument("--plan", action="store_true", help="say what would be made and how long it takes, and stop")
    parser.add_argument(
        "--shard", type=shard, default=(0, 1), metavar="I/N", help="make every N-th chunk from the I-th on"
    )
    parser.add_argument("--steps", type=whole_number(1), default=20, help="sampling steps (default 20)")
    parser.add_argument(
        "--sampler",
        choices=SAMPLERS,
        default="lcm",
        help="lcm: every step goes on with new noise; euler: a flow's plain steps (default lcm)",
    )
    parser.add_argument("--guidance", type=number(), default=3.0, help="of text and of context (default 3)")
    # Of the model that makes the images: what is measured of them is fp32 in any case.
    parser.add_argument(
        "--precision",
        choices=SAMPLING_PRECISIONS,
        default="fp32",
        help="bf16_matmul: linear and convolution layers multiply in bf16, faster on CPUs with bf16 instructions",
    )
    parser.add_argument("--batch-size", type=whole_number(1), default=32, help="images at once (default 32)")
    parser.add_argument("--workers", type=whole_number(1), default=2, help="processes that measure (default 2)")


def shard(text: str) -> tuple[int, int]:
    """ "0/2" -> (0, 2), as argparse's `type=`."""
    index, slash, total = text.partition("/")
    if not (slash and index.isdigit() and total.isdigit() and int(index) < int(total)):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected I/N such as 0/2, with I below N")
    return int(index), int(total)


def sampling(options: argparse.Namespace) -> dict:
    """How the images are sampled, for reports."""
    return {name: getattr(options, name) for name in ("steps", "sampler", "guidance", "precision")}
