"""Make the images of a plan, in chunks that survive a kill, in one process or in shards."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import ContextDiffusionError
from ..sampling.flow import Sampler, SamplingBatch
from .cases.case import Cell, Chunk
from .cases.pictures import context_queries, contexts, prompts, queries, truths
from .cases.tasks import TASKS, WITH_PROMPT
from .chunks import save_chunk
from .plan import Plan

if TYPE_CHECKING:
    from ..model.context_diffusion import ContextDiffusion
    from .cases.case_set import CaseSet

logger = logging.getLogger(__name__)

_SAY_EVERY = 60.0
_PROBE_IMAGES = 4


@torch.no_grad()
def make_chunk(model: ContextDiffusion, sampler: Sampler, case_set: CaseSet, chunk: Chunk) -> Tensor:
    """The images of one chunk, (B, 3, H, W) in [0, 1].

    Args:
        model: for its VAE's reconstructions.
        sampler: makes the images.
        case_set: whose chunk.
        chunk: which.
    """
    cell = chunk.cell
    if cell.setting != "vae":
        return sampler.generate(request(case_set, chunk, sampler))
    images = truths(case_set.library, cell.task, case_set.cases(cell)[chunk.start : chunk.stop])
    return model.decode_latents(model.encode_images(images.to(next(model.vae.parameters()))))


def request(case_set: CaseSet, chunk: Chunk, sampler: Sampler | None = None) -> SamplingBatch:
    """What a model is asked for: the noise of an image is the same in every cell.

    Args:
        case_set: whose chunk.
        chunk: which.
        sampler: whether it `wants_context_queries`.
    """
    library, cell = case_set.library, chunk.cell
    task, cases = TASKS[cell.task], case_set.cases(cell)[chunk.start : chunk.stop]
    context = pairs = None
    if cell.k:
        shuffled = cell.setting == "shuffled"
        context = contexts(library, task, cases, cell.k, shuffled)
        if getattr(sampler, "wants_context_queries", False):
            pairs = context_queries(library, task, cases, cell.k, shuffled)
    return SamplingBatch(
        seeds=case_set.noise(chunk),
        query=queries(library, task, cases),
        context=context,
        prompts=prompts(library, task, cases) if cell.setting in WITH_PROMPT else None,
        size=library.size,
        context_queries=pairs,
    )


def generate(
    plan: Plan,
    model: ContextDiffusion,
    sampler: Sampler,
    folder: Path,
    name: str,
    shard: tuple[int, int] = (0, 1),
) -> bool:
    """Make every chunk that is not on disk yet, one safetensors file of uint8 pixels each.

    On a terminal a bar shows how far it is; elsewhere the log says so every minute.

    Args:
        plan: of the run.
        model: for its VAE's reconstructions.
        sampler: makes the images.
        folder: of the model's images; a run that was killed goes on in the same folder.
        name: of the run, in the bar and in the log.
        shard: (i, n): this process makes every n-th chunk from the i-th on.

    Returns:
        Whether the folder now holds every chunk, those of other shards too.
    """
    from tqdm import tqdm

    chunks = plan.chunks()
    mine = _missing(plan, folder, shard)
    total, made = _images(mine), 0
    start = said = time.monotonic()
    with tqdm(total=total, unit="image", desc=name, disable=None) as bar:
        for chunk in mine:
            save_chunk(plan.path(folder, chunk), make_chunk(model, sampler, plan.case_set, chunk))
            made += chunk.stop - chunk.start
            bar.update(chunk.stop - chunk.start)
            now = time.monotonic()
            if bar.disable and now - said > _SAY_EVERY:
                said = now
                left = (now - start) / made * (total - made)
                logger.info("%s: %d of %d images, %s left", name, made, total, _duration(left))
    return all(plan.path(folder, chunk).exists() for chunk in chunks)


def announce(plan: Plan, sampler: Sampler, folder: Path, name: str, shard: tuple[int, int]) -> None:
    """Say how many images each task takes and, from a first small batch, how long they will take."""
    chunks = plan.chunks()
    logger.info("%s: %d images in all", name, _images(chunks))
    sampled = [chunk for chunk in chunks if chunk.cell.setting != "vae"]
    for task in dict.fromkeys(chunk.cell.task for chunk in sampled):
        logger.info("  %-16s %d", task, _images([chunk for chunk in sampled if chunk.cell.task == task]))
    missing = _missing(plan, folder, shard)
    first = next((chunk for chunk in missing if chunk.cell.setting != "vae"), None)
    if first is None:
        logger.info("  none is left to make in this process")
        return
    probe = Chunk(first.cell, 0, 0, min(_PROBE_IMAGES, len(plan.case_set.cases(first.cell))))
    batch = request(plan.case_set, probe, sampler)
    start = time.perf_counter()
    sampler.generate(batch)
    seconds = (time.perf_counter() - start) / probe.stop
    left = _images(missing)
    logger.info("  %d left in this process at %.2f s an image: about %s", left, seconds, _duration(left * seconds))


def load_images(plan: Plan, folder: Path, cell: Cell, seed: int) -> Tensor:
    """A cell's images of one seed, uint8 (n, 3, H, W), in the order of its cases.

    Raises:
        ContextDiffusionError: some are missing.
    """
    from safetensors.torch import load_file

    files = [plan.path(folder, chunk) for chunk in plan.cell_chunks(cell, seed)]
    missing = [file.name for file in files if not file.exists()]
    if missing:
        raise ContextDiffusionError(
            f"{files[0].parent} lacks {len(missing)} of {len(files)} files of {cell.name}, seed {seed} "
            f"(first {missing[0]}): run the generation again, it goes on where it stopped"
        )
    return torch.cat([load_file(file)["images"] for file in files])


def _missing(plan: Plan, folder: Path, shard: tuple[int, int]) -> list[Chunk]:
    return [chunk for chunk in plan.chunks()[shard[0] :: shard[1]] if not plan.path(folder, chunk).exists()]


def _images(chunks: Sequence[Chunk]) -> int:
    return sum(chunk.stop - chunk.start for chunk in chunks)


def _duration(seconds: float) -> str:
    """ "42 s", "12 min", "3.4 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
