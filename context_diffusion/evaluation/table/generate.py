"""Make the images of the table, in chunks that survive a kill, in one process or in shards."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...sampling.flow import Sampler, SamplingBatch
from ..chunks import load_chunks, make_chunks
from ..heldout import noise_seed
from .pictures import context_queries, contexts, prompts, queries, truths
from .plan import Cell, TableChunk, cell_cases, cell_chunks
from .tasks import TASKS

if TYPE_CHECKING:
    from ...data.library import EmojiLibrary
    from ...model.context_diffusion import ContextDiffusion
    from .cases import TableCase


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
        shard, progress: see `make_chunks`.

    Returns:
        Whether the folder now holds every chunk, those of other shards too.
    """
    return make_chunks(
        chunks,
        folder,
        lambda chunk: make_chunk(model, sampler, library, cases, chunk),
        folder.name,
        shard,
        progress,
    )


def load_cell(folder: Path, cell: Cell, total: int, seed: int, batch_size: int) -> Tensor:
    """A cell's images of one seed, uint8 (total, 3, H, W).

    Raises:
        ContextDiffusionError: some are missing.
    """
    files = [chunk.path(folder) for chunk in cell_chunks(cell, total, seed, batch_size)]
    return load_chunks(files, f"{cell.name}, seed {seed}")
