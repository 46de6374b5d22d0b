"""The steps of a run that both evaluations take: inputs, the images of every model, their measurement."""

from __future__ import annotations

import argparse
import hashlib
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ..checkpoint.read import load_checkpoint
from ..data.library import EmojiLibrary
from ..errors import ContextDiffusionError
from ..features import networks
from ..features.weights import fetch_feature_weights
from ..model.context_diffusion import ContextDiffusion
from ..precision import multiply_in_bf16
from ..sampling.flow import FlowSampler
from .chunks import check_folder, claim_folder
from .generate import announce, generate
from .plan import Plan

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Model:
    """A checkpoint and the folder of its images.

    Attributes:
        label: in the report.
        flag: which option names it.
        path: of the checkpoint.
        digest: of the file.
        folder: of its images.
        facts: what all images in the folder have in common.
    """

    label: str
    flag: str
    path: Path
    digest: str
    folder: Path
    facts: dict


def read_inputs(options: argparse.Namespace) -> tuple[EmojiLibrary, networks.SqueezeNetFeatures]:
    """The data set and a network that judges; what else is missing is found out before any image is made.

    Args:
        options: of `options.add_run`.

    Raises:
        ContextDiffusionError: missing packages, weights or data.
    """
    # First needed when all images are made, hours from here.
    networks.EfficientNetLite0Features()
    if options.fetch_squeezenet and not options.squeezenet.exists():
        fetch_feature_weights(options.squeezenet)
    return EmojiLibrary(options.data), networks.load_squeezenet(options.squeezenet)


def make_images(
    plan: Plan, models: Sequence[Model], options: argparse.Namespace, measured: dict[Path, dict] | None = None
) -> bool:
    """Make what is missing of the images of every model, in this process's shard; with --plan say how much that is.

    Args:
        plan: of the run.
        models: the one in question first.
        options: of the command.
        measured: further folders of the run and what all in them has in common.

    Returns:
        Whether every image is there, those of other shards too.

    Raises:
        ContextDiffusionError: a folder holds results of another run, or a model cannot be sampled.
    """
    facts = {**(measured or {}), **{model.folder: model.facts for model in models}}
    # All of them before any image is made and before any is claimed: an error here leaves all as it was.
    for folder in facts if not options.plan else ():
        check_folder(folder, facts[folder])
    complete = [_make_images_of(plan, model, options, facts) for model in models]
    if not (all(complete) or options.plan):
        logger.info("this shard is done; others are still to come")
    return all(complete)


def _make_images_of(plan: Plan, model: Model, options: argparse.Namespace, facts: dict[Path, dict]) -> bool:
    weights, sampler = load_sampler(model, options)
    announce(plan, sampler, model.folder, model.label, options.shard)
    if options.plan:
        return False
    for folder in facts:
        claim_folder(folder, facts[folder])
    return generate(plan, weights, sampler, model.folder, model.label, options.shard)


def load_for_sampling(path: Path, precision: str) -> ContextDiffusion:
    """A checkpoint in fp32, its products in bf16 if the precision (`--precision`) says so."""
    # Convolutions on CPUs, where this often runs, are faster over this layout.
    model = load_checkpoint(path).float().eval().to(memory_format=torch.channels_last)
    if precision == "bf16_matmul":
        multiply_in_bf16(model)
    return model


def load_sampler(model: Model, options: argparse.Namespace) -> tuple[ContextDiffusion, FlowSampler]:
    """A checkpoint, and what makes images of it as the options of `add_run` say.

    Raises:
        ContextDiffusionError: no checkpoint that can be read, one that lacks a part, or one that predicts no flow.
    """
    weights = load_for_sampling(model.path, options.precision)
    missing = _missing_parts(weights)
    if missing:
        raise ContextDiffusionError(
            f"{model.path} has no {', no '.join(missing)}: evaluation needs a whole model, give {model.flag} a "
            "checkpoint that was saved with all its parts"
        )
    return weights, FlowSampler(weights, options.steps, options.guidance, options.guidance, options.sampler)


def file_digest(path: Path) -> str:
    """A short name of a file's content."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def log_written(paths: Iterable[Path]) -> None:
    """Say which files there are now."""
    for path in paths:
        logger.info("wrote %s", path)


def _missing_parts(model: ContextDiffusion) -> list[str]:
    """What every image of an evaluation needs and a model lacks; all are made after a query."""
    needed = ("layout_encoder", "vae", "text_encoder", "tokenizer", *model.context_parts)
    names = {"vae": "VAE"}
    return [names.get(part, part.replace("_", " ")) for part in needed if getattr(model, part) is None]
