"""Writing images and grids: whole files or none."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from context_diffusion import ContextDiffusionError, load_image_as_tensor
from context_diffusion.images import (
    image_grid,
    save_image,
    to_pil,
)

from ..tiny_images import random_pixels


@pytest.mark.parametrize("suffix", [".png", ".webp", ".bmp", ".tif", ".PNG"])
def test_save_and_load_round_trip(tmp_path: Path, suffix: str) -> None:
    pixels = random_pixels(6, 7)
    image = torch.from_numpy(pixels).permute(2, 0, 1) / 255
    path = save_image(image, tmp_path / "new" / f"a{suffix}")
    np.testing.assert_array_equal(np.asarray(Image.open(path)), pixels)
    assert torch.equal(load_image_as_tensor(path), image)
    assert os.listdir(path.parent) == [path.name]


def test_to_pil_rounds() -> None:
    values = torch.tensor([0.4 / 255, 0.6 / 255, 254.6 / 255]).view(3, 1, 1)
    assert to_pil(values).getpixel((0, 0)) == (0, 1, 255)
    with pytest.raises(ContextDiffusionError, match="2 images"):
        to_pil(torch.zeros(2, 3, 4, 4))


def test_save_refuses_before_it_writes(tmp_path: Path) -> None:
    for path in (tmp_path / "a.xyz", tmp_path / "a", tmp_path):
        with pytest.raises(ContextDiffusionError):
            save_image(torch.zeros(3, 4, 4), path)
    with pytest.raises(ContextDiffusionError):
        save_image(torch.full((3, 4, 4), float("nan")), tmp_path / "a.png")
    (tmp_path / "file").write_text("x")
    with pytest.raises(ContextDiffusionError, match="is a file"):
        save_image(torch.zeros(3, 4, 4), tmp_path / "file" / "a.png")
    assert os.listdir(tmp_path) == ["file"]


def test_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save_image(torch.zeros(3, 4, 4), tmp_path / "a.png")
    before = path.read_bytes()

    def half_written(self: Image.Image, file: Path, **_: object) -> None:
        Path(file).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", half_written)
    with pytest.raises(ContextDiffusionError, match="full"):
        save_image(torch.ones(3, 4, 4), path)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["a.png"]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_read_only_folder(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(ContextDiffusionError, match="not writable"):
            save_image(torch.zeros(3, 4, 4), tmp_path / "a.png")
    finally:
        tmp_path.chmod(0o700)


def test_read_only_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Image.Image, "save", refuse)
    with pytest.raises(ContextDiffusionError, match="read-only"):
        save_image(torch.zeros(3, 4, 4), tmp_path / "a.png")


# Grids


def test_grid_places_every_image() -> None:
    red, green = torch.zeros(3, 8, 8), torch.zeros(3, 8, 8)
    red[0], green[1] = 1, 1
    grid = image_grid([[red, green], [None, red]])
    assert grid.shape == (3, 2 * 12 + 4, 2 * 12 + 4)
    assert torch.equal(grid[:, 4:12, 4:12], red) and torch.equal(grid[:, 4:12, 16:24], green)
    assert torch.equal(grid[:, 16:24, 4:12], torch.ones(3, 8, 8)) and torch.equal(grid[:, 16:24, 16:24], red)


def test_grid_labels_are_drawn_above_their_column() -> None:
    grid = image_grid([[torch.ones(3, 64, 64)] * 2], labels=["", "truth"])
    strip = grid[:, : grid.shape[1] - 72]
    assert strip.shape[1] > 0 and strip[..., :68].min() == 1 and strip[..., 68:].min() < 0.5
    with pytest.raises(ContextDiffusionError, match="labels"):
        image_grid([[torch.ones(3, 8, 8)]], labels=["a", "b"])
    with pytest.raises(ContextDiffusionError, match="no images"):
        image_grid([[None]])
