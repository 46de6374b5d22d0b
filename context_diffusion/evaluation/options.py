"""What the options that both evaluations have mean."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ..choices import SAMPLERS, SAMPLING_PRECISIONS
from ..errors import ContextDiffusionError

if TYPE_CHECKING:
    from ..model.context_diffusion import ContextDiffusion
    from ..sampling.flow import FlowSampler


def add_precision(parser: argparse.ArgumentParser) -> None:
    """--precision, of the model that makes the images; what is measured of them is fp32 in any case."""
    parser.add_argument(
        "--precision",
        choices=SAMPLING_PRECISIONS,
        default="fp32",
        help="bf16_matmul: linear and convolution layers multiply in bf16, faster on CPUs with bf16 instructions",
    )


def add_sampler(parser: argparse.ArgumentParser) -> None:
    """--steps, --sampler and --guidance: how the images are sampled."""
    parser.add_argument("--steps", type=int, default=20, help="sampling steps (default 20)")
    parser.add_argument(
        "--sampler",
        choices=SAMPLERS,
        default="lcm",
        help="lcm: every step goes on with new noise; euler: a flow's plain steps (default lcm)",
    )
    parser.add_argument("--guidance", type=float, default=3.0, help="of text and of context (default 3)")


def load_for_sampling(path: Path, precision: str) -> ContextDiffusion:
    """A checkpoint in fp32, its products in bf16 if the precision (see `add_precision`) says so."""
    import torch

    from ..checkpoint.read import load_checkpoint
    from ..precision import multiply_in_bf16

    # Convolutions on CPUs, where this often runs, are faster over this layout.
    model = load_checkpoint(path).float().eval().to(memory_format=torch.channels_last)
    if precision == "bf16_matmul":
        multiply_in_bf16(model)
    return model


def load_sampler(path: Path, options: argparse.Namespace) -> tuple[ContextDiffusion, FlowSampler]:
    """A checkpoint, and what makes images of it as the options of `add_sampler` and `add_precision` say.

    Raises:
        ContextDiffusionError: no checkpoint that can be read, one that lacks a part, or one that predicts no flow.
    """
    from ..sampling.flow import FlowSampler

    model = load_for_sampling(path, options.precision)
    missing = _missing_parts(model)
    if missing:
        flag = "--model" if path == options.model else "--against"
        raise ContextDiffusionError(
            f"{path} has no {', no '.join(missing)}: evaluation needs a whole model, give {flag} a checkpoint that was "
            "saved with all its parts"
        )
    return model, FlowSampler(model, options.steps, options.guidance, options.guidance, options.sampler)


def _missing_parts(model: ContextDiffusion) -> list[str]:
    """What every image of an evaluation needs and a model lacks; all are made after a query."""
    needed = ("layout_encoder", "vae", "text_encoder", "tokenizer", *model.context_parts)
    names = {"vae": "VAE"}
    return [names.get(part, part.replace("_", " ")) for part in needed if getattr(model, part) is None]


def parse_shard(text: str) -> tuple[int, int]:
    """ "0/2" -> (0, 2)."""
    index, slash, total = text.partition("/")
    if not (slash and index.isdigit() and total.isdigit() and int(index) < int(total)):
        raise ContextDiffusionError(f"--shard is {text!r}: give I/N such as 0/2, with I below N")
    return int(index), int(total)
