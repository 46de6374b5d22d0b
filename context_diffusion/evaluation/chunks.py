"""Generated images on disk: whole files of a few images each, in a folder that belongs to one run."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from ..errors import ContextDiffusionError
from ..files import write_atomically, write_tensors

logger = logging.getLogger(__name__)

_SAY_EVERY = 60.0
_FACTS = "run.json"


class ImageFile(Protocol):
    """A file of images of one cell: the `start`-th up to, not including, the `stop`-th."""

    start: int
    stop: int

    def path(self, folder: Path) -> Path:
        """The file, in the folder of its run."""


File = TypeVar("File", bound=ImageFile)


def make_chunks(
    chunks: Sequence[File],
    folder: Path,
    make: Callable[[File], Tensor],
    name: str,
    shard: tuple[int, int] = (0, 1),
    progress: bool | None = None,
) -> bool:
    """Make every chunk that is not on disk yet.

    Args:
        chunks: all of the run.
        folder: where they lie.
        make: gives a chunk's images (B, 3, H, W) in [0, 1].
        name: of the run, in the bar and in the log.
        shard: (i, n): this process makes every n-th chunk from the i-th on.
        progress: show a bar; None does on a terminal only. Without a bar, the log says every minute how far
            it is.

    Returns:
        Whether the folder now holds every chunk, those of other shards too.
    """
    from tqdm import tqdm

    mine = [chunk for chunk in chunks[shard[0] :: shard[1]] if not chunk.path(folder).exists()]
    total = sum(chunk.stop - chunk.start for chunk in mine)
    start = said = time.monotonic()
    with tqdm(total=total, unit="image", desc=name, disable=None if progress is None else not progress) as bar:
        made = 0
        for chunk in mine:
            save_chunk(chunk.path(folder), make(chunk))
            made += chunk.stop - chunk.start
            bar.update(chunk.stop - chunk.start)
            now = time.monotonic()
            if bar.disable and now - said > _SAY_EVERY:
                said = now
                left = (now - start) / made * (total - made)
                logger.info("%s: %d of %d images, %s left", name, made, total, duration(left))
    return all(chunk.path(folder).exists() for chunk in chunks)


def duration(seconds: float) -> str:
    """ "42 s", "12 min", "3.4 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def claim_folder(out: Path, facts: dict) -> None:
    """Write down whose results a folder holds, or check it.

    Args:
        out: the folder; made when it is not there.
        facts: what all results in it have in common, JSON values.

    Raises:
        ContextDiffusionError: the folder holds results of other facts.
    """
    check_folder(out, facts)
    if held_facts(out) is None:
        with write_atomically(out / _FACTS) as scratch:
            scratch.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def check_folder(out: Path, facts: dict) -> None:
    """As `claim_folder`, and nothing is written."""
    held = held_facts(out)
    if held is not None and held != facts:
        differing = ", ".join(name for name in facts if held.get(name) != facts[name])
        raise ContextDiffusionError(
            f"{out} holds results of another run ({differing} differ): give another folder, or empty it"
        )


def held_facts(out: Path) -> dict | None:
    """What `claim_folder` wrote down of a folder; None where it wrote nothing."""
    path = out / _FACTS
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def to_pixels(images: Tensor) -> Tensor:
    """Images in [0, 1] -> uint8, rounded, on the CPU."""
    return (images.clamp(0, 1) * 255).round().to(torch.uint8).cpu().contiguous()


def save_chunk(path: Path, images: Tensor) -> None:
    """Write images (B, 3, H, W) in [0, 1] as uint8 pixels, one safetensors file."""
    # Renamed when whole: a killed run leaves no chunk that only looks finished.
    write_tensors(path, {"images": to_pixels(images)})


def load_chunks(files: Sequence[Path], what: str) -> Tensor:
    """The images of several files one after the other, uint8 (n, 3, H, W).

    Args:
        files: in order.
        what: names them in the error.

    Raises:
        ContextDiffusionError: files are missing.
    """
    from safetensors.torch import load_file

    missing = [file.name for file in files if not file.exists()]
    if missing:
        raise ContextDiffusionError(
            f"{files[0].parent} lacks {len(missing)} of {len(files)} files of {what} "
            f"(first {missing[0]}): run the generation again, it goes on where it stopped"
        )
    return torch.cat([load_file(file)["images"] for file in files])
