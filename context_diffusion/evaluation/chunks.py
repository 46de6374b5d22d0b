"""Generated images on disk: whole files of a few images each, in a folder that belongs to one run."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor

from ..errors import ContextDiffusionError
from ..files import write_atomically, write_tensors

_FACTS = "run.json"


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
    return (images.clamp(0, 1) * 255).round().to(torch.uint8).cpu()


def save_chunk(path: Path, images: Tensor) -> None:
    """Write images (B, 3, H, W) in [0, 1] as uint8 pixels, one safetensors file."""
    # Renamed when whole: a killed run leaves no chunk that only looks finished.
    write_tensors(path, {"images": to_pixels(images).contiguous()})
