"""Run the held-out protocol: generate in chunks that survive a kill, in one process or in shards."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import ContextDiffusionError
from ..maps import make_map
from ..sampling.flow import Sampler, SamplingBatch
from .chunks import claim_folder, load_chunks, make_chunks
from .protocol import PART_SETTINGS, PARTS, Case, cases_digest, contexts, queries, truths

if TYPE_CHECKING:
    from ..data.library import EmojiLibrary
    from ..model.context_diffusion import ContextDiffusion


@dataclass(frozen=True)
class Chunk:
    """One file of generated images: some cases of one part, in one setting, from one seed.

    Attributes:
        part: one of `PARTS`.
        setting: one of `SETTINGS`, or `vae`.
        seed: 0, 1, ...; the noise of case i is seeded by it and by i.
        start: first case, counted within the part.
        stop: one past the last.
    """

    part: str
    setting: str
    seed: int
    start: int
    stop: int

    def path(self, folder: Path) -> Path:
        return folder / f"{self.part}-{self.setting}-{self.seed}-{self.start:05d}.safetensors"


def protocol_chunks(cases: Sequence[Case], seeds: int = 3, batch_size: int = 32) -> Iterator[Chunk]:
    """Every chunk of the protocol, first seed first; the VAE's reconstructions have one seed only."""
    totals = {part: sum(case.part == part for case in cases) for part in PARTS}
    for seed in range(seeds):
        for part, total in totals.items():
            for setting in (*PART_SETTINGS[part], *(("vae",) if seed == 0 else ())):
                for start in range(0, total, batch_size):
                    yield Chunk(part, setting, seed, start, min(start + batch_size, total))


def noise_seed(seed: int, part: str, position: int) -> int:
    """The noise of one image: the same in every setting, so that settings compare in pairs."""
    digest = hashlib.sha256(f"{seed}:{part}:{position}".encode()).digest()
    return int.from_bytes(digest[:6], "big")


def generate_heldout(
    model: ContextDiffusion,
    sampler: Sampler,
    library: EmojiLibrary,
    cases: Sequence[Case],
    out: str | Path,
    *,
    fingerprint: str,
    seeds: int = 3,
    batch_size: int = 32,
    shard: tuple[int, int] = (0, 1),
    progress: bool | None = None,
) -> bool:
    """Make every image of the protocol that is not on disk yet, one safetensors file of uint8 pixels a chunk.

    Args:
        model: for its VAE's reconstructions.
        sampler: makes the images.
        library: the emoji data set.
        cases: from `heldout_cases`.
        out: folder of the results; a run that was killed goes on in the same folder.
        fingerprint: names the model and how it is sampled; a folder holds the images of one.
        seeds: how many.
        batch_size: images at once, and cases a file.
        shard: (i, n): this process makes every n-th chunk from the i-th on.
        progress: see `make_chunks`.

    Returns:
        Whether the folder now holds every chunk, those of other shards too.

    Raises:
        ContextDiffusionError: a bad shard, or a folder of another model or protocol.
    """
    index, total = shard
    if not 0 <= index < total:
        raise ContextDiffusionError(f"shard is {index}/{total}: give i/n with 0 <= i < n")
    out = Path(out)
    claim_folder(out, {"fingerprint": fingerprint, "cases": cases_digest(cases), "batch_size": batch_size})
    chunks = list(protocol_chunks(cases, seeds, batch_size))
    by_part = {part: [case for case in cases if case.part == part] for part in PARTS}
    return make_chunks(
        chunks,
        out,
        lambda chunk: make_chunk(model, sampler, library, by_part[chunk.part], chunk),
        "held-out",
        shard,
        progress,
    )


@torch.no_grad()
def make_chunk(
    model: ContextDiffusion, sampler: Sampler, library: EmojiLibrary, cases: Sequence[Case], chunk: Chunk
) -> Tensor:
    """The images of one chunk, (B, 3, H, W) in [0, 1].

    Args:
        model: for its VAE.
        sampler: makes the images.
        library: the emoji data set.
        cases: those of the chunk's part.
        chunk: which of them, in which setting.
    """
    chosen = cases[chunk.start : chunk.stop]
    if chunk.setting == "vae":
        images = truths(library, chosen)
        return model.decode_latents(model.encode_images(images.to(next(model.vae.parameters()))))
    context = pairs = None
    if chunk.setting in ("cp", "c", "shuffled"):
        context = contexts(library, chosen, shuffled=chunk.setting == "shuffled")
        if getattr(sampler, "wants_context_queries", False):
            # The map that the targets' queries are.
            pairs = make_map(context.flatten(0, 1), "softedge").unflatten(0, context.shape[:2])
    prompts = None
    if chunk.setting in ("cp", "p"):
        prompts = tuple(library.caption(case.style, case.key) for case in chosen)
    return sampler.generate(
        SamplingBatch(
            seeds=tuple(noise_seed(chunk.seed, chunk.part, i) for i in range(chunk.start, chunk.stop)),
            query=queries(library, chosen),
            context=context,
            prompts=prompts,
            size=library.size,
            context_queries=pairs,
        )
    )


def load_images(
    out: str | Path, cases: Sequence[Case], part: str, setting: str, seed: int, batch_size: int = 32
) -> Tensor:
    """Generated images of one part, setting and seed, uint8 (n, 3, H, W), in the order of the part's cases.

    Raises:
        ContextDiffusionError: chunks are missing.
    """
    files = [
        chunk.path(Path(out))
        for chunk in protocol_chunks(cases, seed + 1, batch_size)
        if (chunk.part, chunk.setting, chunk.seed) == (part, setting, seed)
    ]
    return load_chunks(files, f"{part}, {setting}, seed {seed}")
