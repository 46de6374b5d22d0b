"""Make the images of the table, in chunks that survive a kill, in one process or in shards."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...flow_sampler import Sampler, SamplingBatch
from ..chunks import load_chunks, save_chunk
from ..heldout import noise_seed
from .pictures import context_queries, contexts, prompts, queries, truths
from .plan import Cell, TableChunk, cell_cases, cell_chunks
from .tasks import TASKS

if TYPE_CHECKING:
    from ...data.library import EmojiLibrary
    from ...model import ContextDiffusion
    from .cases import TableCase

logger = logging.getLogger(__name__)

_SAY_EVERY = 60.0


@torch.no_grad()
def make_chunk(
    model: ContextDiffusion,
    sampler: Sampler,
    library: EmojiLibrary,
    cases: dict[str, list[TableCase]],
    chunk: TableChunk,
) -> Tensor:
    """The images of one chunk, (B, 3, H, W) in [0, 1]."""
    cell = chunk.cell
    chosen = cell_cases(cell, cases)[chunk.start : chunk.stop]
    if cell.setting == "vae":
        images = truths(library, cell.task, chosen)
        return model.decode_latents(model.encode_images(images.to(next(model.vae.parameters()))))
    return sampler.generate(request(library, chosen, cell, chunk.seed, sampler))


def request(
    library: EmojiLibrary, cases: Sequence[TableCase], cell: Cell, seed: int, sampler: Sampler | None = None
) -> SamplingBatch:
    """What a model is asked for: the noise of an image is the same in every cell.

    Args:
        library: the emoji data set.
        cases: the images.
        cell: says the task, the setting and k.
        seed: 0, 1, ...
        sampler: whether it `wants_context_queries`.
    """
    task = TASKS[cell.task]
    context = pairs = None
    if cell.k:
        shuffled = cell.setting == "shuffled"
        context = contexts(library, task, cases, cell.k, shuffled)
        if getattr(sampler, "wants_context_queries", False):
            pairs = context_queries(library, task, cases, cell.k, shuffled)
    return SamplingBatch(
        seeds=tuple(noise_seed(seed, case.style, case.key) for case in cases),
        query=queries(library, task, cases),
        context=context,
        prompts=prompts(library, task, cases) if cell.setting in ("cp", "p") else None,
        size=library.size,
        context_queries=pairs,
    )


def seconds_per_image(sampler: Sampler, library: EmojiLibrary, cases: Sequence[TableCase], cell: Cell) -> float:
    """Time of a first small batch, for the estimate."""
    batch = request(library, cases, cell, 0, sampler)
    start = time.perf_counter()
    with torch.no_grad():
        sampler.generate(batch)
    return (time.perf_counter() - start) / len(cases)


def generate_table(
    model: ContextDiffusion,
    sampler: Sampler,
    library: EmojiLibrary,
    cases: dict[str, list[TableCase]],
    chunks: Sequence[TableChunk],
    folder: Path,
    shard: tuple[int, int] = (0, 1),
    progress: bool | None = None,
) -> bool:
    """Make every chunk that is not on disk yet.

    Args:
        model: for its VAE's reconstructions.
        sampler: makes the images.
        library: the emoji data set.
        cases: of every part.
        chunks: from `table_chunks`.
        folder: of the model's images.
        shard: (i, n): this process makes every n-th chunk from the i-th on.
        progress: show a bar; None does on a terminal only. Without a bar, the log says every minute how far
            it is.

    Returns:
        Whether the folder now holds every chunk, those of other shards too.
    """
    from tqdm import tqdm

    mine = [chunk for chunk in chunks[shard[0] :: shard[1]] if not chunk.path(folder).exists()]
    total = sum(chunk.stop - chunk.start for chunk in mine)
    hide = None if progress is None else not progress
    start = said = time.monotonic()
    with tqdm(total=total, unit="image", desc=folder.name, disable=hide) as bar:
        made = 0
        for chunk in mine:
            save_chunk(chunk.path(folder), make_chunk(model, sampler, library, cases, chunk))
            made += chunk.stop - chunk.start
            bar.update(chunk.stop - chunk.start)
            now = time.monotonic()
            if bar.disable and now - said > _SAY_EVERY:
                said = now
                left = (now - start) / made * (total - made)
                logger.info("%s: %d of %d images, %s left", folder.name, made, total, duration(left))
    return all(chunk.path(folder).exists() for chunk in chunks)


def load_cell(folder: Path, cell: Cell, total: int, seed: int, batch_size: int) -> Tensor:
    """A cell's images of one seed, uint8 (total, 3, H, W).

    Raises:
        ContextDiffusionError: some are missing.
    """
    files = [chunk.path(folder) for chunk in cell_chunks(cell, total, seed, batch_size)]
    return load_chunks(files, f"{cell.name}, seed {seed}")


def duration(seconds: float) -> str:
    """ "42 s", "12 min", "3.4 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
