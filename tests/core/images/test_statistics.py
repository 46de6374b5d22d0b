"""The check of image tensors, and their mean and standard deviation, against numpy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from context_diffusion import ContextDiffusionError, calculate_mean_std
from context_diffusion.images import (
    check_images,
    image_from_pil,
)

from ..tiny_images import random_pixels


def test_numbers_without_a_known_range() -> None:
    for values in (np.full((2, 2), 300.0, np.float32), np.full((2, 2), np.nan, np.float32)):
        with pytest.raises(ContextDiffusionError, match=r"\[0, 1\]"):
            image_from_pil(Image.fromarray(values))
    with pytest.raises(ContextDiffusionError, match="65535"):
        image_from_pil(Image.fromarray(np.full((2, 2), 70000, np.int32)))
    with pytest.raises(ContextDiffusionError, match="no pixels"):
        image_from_pil(Image.new("RGB", (0, 4)))
    with pytest.raises(ContextDiffusionError, match="PIL image"):
        image_from_pil(torch.zeros(3, 4, 4))


# Bad tensors


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (torch.full((1, 3, 4, 4), float("nan")), "NaN"),
        (torch.full((1, 3, 4, 4), float("inf")), "infinite"),
        (torch.full((1, 3, 4, 4), 255.0), "255"),
        (torch.full((1, 3, 4, 4), -1.0), r"\[-1, 1\]"),
        (torch.zeros(1, 4, 4, 4), "4 channels"),
        (torch.zeros(1, 1, 4, 4), "1 channels"),
        (torch.zeros(2, 8, 8, 3), "channels come last"),
        (torch.zeros(4, 4), "shape"),
        (torch.zeros(1, 1, 3, 4, 4), "shape"),
        (torch.zeros(0, 3, 4, 4), "empty"),
        (torch.zeros(1, 3, 0, 4), "empty"),
        (torch.zeros(1, 3, 4, 4, dtype=torch.uint8), "dtype"),
        (np.zeros((1, 3, 4, 4)), "ndarray"),
        (None, "NoneType"),
    ],
)
def test_bad_tensors(images: object, words: str) -> None:
    with pytest.raises(ContextDiffusionError, match=words) as caught:
        check_images(images, "context images")
    assert str(caught.value).startswith("context images: ")


def test_one_nan_among_many_is_found() -> None:
    images = torch.rand(2, 3, 32, 32)
    images[1, 2, 17, 5] = float("nan")
    with pytest.raises(ContextDiffusionError, match="NaN"):
        check_images(images)


def test_good_tensors_pass_unchanged() -> None:
    images = torch.rand(2, 3, 4, 4)
    assert check_images(images) is images
    assert check_images(images[0]).shape == (1, 3, 4, 4)
    overshoot = torch.tensor([-0.004, 0.5, 1.004]).view(1, 3, 1, 1)
    assert check_images(overshoot).flatten().tolist() == [0, 0.5, 1]


# Statistics


def test_statistics_of_tensors() -> None:
    scale = torch.tensor([1.0, 0.5, 0.1]).view(3, 1, 1)
    batch = torch.rand(5, 3, 7, 11, generator=torch.Generator().manual_seed(1)) * scale
    values = batch.double().numpy().transpose(1, 0, 2, 3).reshape(3, -1)
    for images in (batch, list(batch), iter([batch[:2], batch[2:]])):
        mean, std = calculate_mean_std(images)
        np.testing.assert_allclose(mean.numpy(), values.mean(axis=1), rtol=1e-6)
        np.testing.assert_allclose(std.numpy(), values.std(axis=1), rtol=1e-6)
    one_mean, one_std = calculate_mean_std(batch[0])
    np.testing.assert_allclose(one_mean.numpy(), batch[0].double().mean(dim=(1, 2)).numpy(), rtol=1e-6)
    expected = batch[0].numpy().std(axis=(1, 2), dtype=np.float64)
    np.testing.assert_allclose(one_std.numpy(), expected, rtol=1e-6)


def test_statistics_survive_a_tiny_spread() -> None:
    """Sum of squares minus square of sums in float32 would give 0 or NaN here."""
    images = torch.full((4, 3, 16, 16), 0.999)
    images[:, :, ::2] += 1e-6
    values = images.double().numpy()
    _, std = calculate_mean_std(images)
    assert values[:, 0].std() > 1e-7
    np.testing.assert_allclose(std.numpy(), values.std(axis=(0, 2, 3)), rtol=1e-5)


def test_statistics_of_a_folder_weigh_pixels_and_not_files(tmp_path: Path) -> None:
    (tmp_path / "deeper").mkdir()
    first, second = random_pixels(3, 4, seed=1), random_pixels(30, 10, seed=2) // 3
    Image.fromarray(first).save(tmp_path / "a.png")
    Image.fromarray(second).save(tmp_path / "deeper" / "b.bmp")
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / ".hidden.png").write_bytes(b"junk")
    values = np.concatenate([first.reshape(-1, 3), second.reshape(-1, 3)]) / 255.0
    for images in (tmp_path, str(tmp_path), [tmp_path / "a.png", Image.fromarray(second)]):
        mean, std = calculate_mean_std(images)
        np.testing.assert_allclose(mean.numpy(), values.mean(axis=0), rtol=1e-6)
        np.testing.assert_allclose(std.numpy(), values.std(axis=0), rtol=1e-6)


def test_statistics_stream() -> None:
    """No more than one image of an iterable is alive at a time."""
    import weakref

    alive: list[weakref.ref] = []

    def images():
        for number in range(5):
            assert sum(reference() is not None for reference in alive) <= 1
            image = torch.full((3, 4, 4), number / 4)
            alive.append(weakref.ref(image))
            yield image
            del image

    mean, _ = calculate_mean_std(images())
    assert mean.tolist() == pytest.approx([0.5] * 3)


@pytest.mark.parametrize("images", [[], torch.zeros(0, 3, 4, 4), None, 5, {"a": 1}, [torch.zeros(3, 4)]])
def test_statistics_of_nothing(images: object) -> None:
    with pytest.raises(ContextDiffusionError):
        calculate_mean_std(images)


def test_statistics_of_bad_folders(tmp_path: Path) -> None:
    with pytest.raises(ContextDiffusionError, match="no images"):
        calculate_mean_std(tmp_path)
    with pytest.raises(ContextDiffusionError, match="does not exist"):
        calculate_mean_std(tmp_path / "nowhere")
    (tmp_path / "broken.png").write_bytes(b"junk")
    with pytest.raises(ContextDiffusionError, match=r"broken\.png"):
        calculate_mean_std(tmp_path)
