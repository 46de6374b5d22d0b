"""Reading images, against PIL and numpy by hand; what cannot be read is named."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from context_diffusion import ContextDiffusionError, load_image_as_tensor
from context_diffusion.images import (
    image_from_pil,
)

from ..tiny_images import as_hwc, random_pixels


def test_rgb_png_is_read_exactly(tmp_path: Path) -> None:
    pixels = random_pixels(5, 9)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    image = load_image_as_tensor(tmp_path / "a.png")
    assert image.dtype == torch.float32 and image.shape == (3, 5, 9)
    np.testing.assert_array_equal(as_hwc(image), pixels.astype(np.float32) / 255)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path: Path, orientation: int) -> None:
    """What is stored so that a viewer must apply `orientation` comes back as the upright scene."""
    scene = random_pixels(4, 6)
    stored = {  # undoing the viewer's operation, from the table in the EXIF standard
        1: scene,
        2: np.fliplr(scene),
        3: np.rot90(scene, 2),
        4: np.flipud(scene),
        5: scene.transpose(1, 0, 2),
        6: np.rot90(scene, 1),  # shown after a quarter turn clockwise
        7: np.rot90(scene, 2).transpose(1, 0, 2),
        8: np.rot90(scene, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_allclose(as_hwc(load_image_as_tensor(tmp_path / "a.png")) * 255, scene, atol=1e-4)


def test_damaged_exif_does_not_hide_the_picture(tmp_path: Path) -> None:
    pixels = random_pixels(4, 4)
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff\x00")
    np.testing.assert_allclose(as_hwc(load_image_as_tensor(tmp_path / "a.png")) * 255, pixels, atol=1e-4)


def test_16_bit_grey_keeps_its_precision(tmp_path: Path) -> None:
    values = np.array([[0, 1, 256], [32768, 65534, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    image = load_image_as_tensor(tmp_path / "a.png")
    for channel in image:
        np.testing.assert_allclose(channel.numpy(), values / 65535, atol=1e-7)


def test_palette_grey_bilevel_cmyk(tmp_path: Path) -> None:
    palette = Image.fromarray(np.array([[0, 1], [2, 1]], dtype=np.uint8), mode="P")
    palette.putpalette([255, 0, 0, 0, 255, 0, 10, 20, 30])
    palette.save(tmp_path / "p.png")
    expected = np.array([[[255, 0, 0], [0, 255, 0]], [[10, 20, 30], [0, 255, 0]]]) / 255
    np.testing.assert_allclose(as_hwc(load_image_as_tensor(tmp_path / "p.png")), expected, atol=1e-6)

    grey = random_pixels(3, 4)[..., 0]
    Image.fromarray(grey).save(tmp_path / "l.png")
    image = load_image_as_tensor(tmp_path / "l.png")
    np.testing.assert_allclose(image.numpy(), np.stack([grey / 255] * 3), atol=1e-6)

    bilevel = np.array([[True, False], [False, True]])
    Image.fromarray(bilevel).save(tmp_path / "b.png")
    np.testing.assert_array_equal(load_image_as_tensor(tmp_path / "b.png")[0].numpy(), bilevel)

    cyan = image_from_pil(Image.new("CMYK", (2, 2), (255, 0, 0, 0)))
    np.testing.assert_allclose(cyan[:, 0, 0].numpy(), [0, 1, 1], atol=1e-6)


def test_alpha_lies_over_the_background(tmp_path: Path) -> None:
    pixels = random_pixels(6, 5, channels=4)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    color, alpha = pixels[..., :3] / 255, pixels[..., 3:] / 255
    for background, rgb in (("white", (1, 1, 1)), ("#336699", (0.2, 0.4, 0.6)), ((0.5, 0, 1), (0.5, 0, 1))):
        image = load_image_as_tensor(tmp_path / "a.png", background=background)
        np.testing.assert_allclose(as_hwc(image), color * alpha + np.array(rgb) * (1 - alpha), atol=1e-6)


def test_transparent_palette_entry(tmp_path: Path) -> None:
    palette = Image.fromarray(np.array([[0, 1]], dtype=np.uint8), mode="P")
    palette.putpalette([255, 0, 0, 0, 255, 0])
    palette.save(tmp_path / "a.png", transparency=0)
    image = load_image_as_tensor(tmp_path / "a.png", background="blue")
    np.testing.assert_allclose(as_hwc(image), [[[0, 0, 1], [0, 1, 0]]], atol=1e-6)


def test_grey_with_alpha_and_premultiplied_alpha() -> None:
    pair = np.array([[[200, 255], [200, 0]]], dtype=np.uint8)
    image = image_from_pil(Image.fromarray(pair, mode="LA"), background="black")
    np.testing.assert_allclose(image[:, 0].numpy(), [[200 / 255, 0]] * 3, atol=1e-6)
    straight = Image.new("RGBA", (1, 1), (200, 100, 0, 255))
    image = image_from_pil(straight.convert("RGBa"))
    np.testing.assert_allclose(image[:, 0, 0].numpy() * 255, [200, 100, 0], atol=1e-3)


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".png"])
def test_animations_give_their_first_frame(tmp_path: Path, suffix: str) -> None:
    frames = [Image.new("RGB", (8, 8), color) for color in ((255, 0, 0), (0, 255, 0), (0, 0, 255))]
    options = {"lossless": True} if suffix == ".webp" else {}
    path = tmp_path / f"a{suffix}"
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=100, **options)
    with Image.open(path) as check:
        assert check.n_frames == 3
    np.testing.assert_allclose(load_image_as_tensor(path).mean(dim=(1, 2)).numpy(), [1, 0, 0], atol=1e-6)


def test_mean_and_std_are_applied(tmp_path: Path) -> None:
    pixels = random_pixels(3, 3)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.25, 0.5)
    image = load_image_as_tensor(tmp_path / "a.png", mean=mean, std=std)
    np.testing.assert_allclose(as_hwc(image), (pixels / 255 - mean) / np.array(std), rtol=1e-5, atol=1e-6)


# Bad files: one clear line that names the file


def expect_error(path: Path, *words: str) -> None:
    with pytest.raises(ContextDiffusionError) as caught:
        load_image_as_tensor(path)
    message = str(caught.value)
    assert "\n" not in message and str(path) in message
    for word in words:
        assert word in message


def test_missing_empty_folder_and_foreign_files(tmp_path: Path) -> None:
    expect_error(tmp_path / "nothing.png", "does not exist")
    expect_error(tmp_path, "is a folder")
    if os.name != "nt":
        os.mkfifo(tmp_path / "pipe.png")
        expect_error(tmp_path / "pipe.png", "is a named pipe: give an image file")
    (tmp_path / "empty.png").touch()
    expect_error(tmp_path / "empty.png", "empty")
    (tmp_path / "text.png").write_text("no picture")
    expect_error(tmp_path / "text.png", "not an image")
    expect_error(tmp_path / "text.png" / "inside.png", str(tmp_path))
    expect_error(tmp_path / ("x" * 300 + ".png"), "cannot be read")


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".gif", ".bmp", ".tif"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.9])
def test_truncated_files(tmp_path: Path, suffix: str, share: float) -> None:
    path = tmp_path / f"a{suffix}"
    Image.fromarray(random_pixels(64, 64)).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: max(1, int(len(whole) * share))])
    expect_error(path)


def test_flipped_bytes_never_end_in_a_foreign_exception(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for suffix in (".png", ".jpg", ".webp", ".gif", ".tif"):
        path = tmp_path / f"a{suffix}"
        Image.fromarray(random_pixels(16, 16)).save(path)
        whole = np.frombuffer(path.read_bytes(), dtype=np.uint8)
        for _ in range(40):
            damaged = whole.copy()
            damaged[random.integers(0, min(len(whole), 200), 3)] = random.integers(0, 256, 3)
            path.write_bytes(damaged.tobytes())
            try:
                image = load_image_as_tensor(path, size=16)
            except ContextDiffusionError:
                continue
            assert image.shape == (3, 16, 16) and image.min() >= 0 and image.max() <= 1


def test_decompression_bomb(tmp_path: Path) -> None:
    """A PNG of 60 bytes that claims 400 million pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    for side in (12000, 20000, 60000):  # Pillow itself only warns of the first and refuses the last
        header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
        chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
        (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)
        expect_error(tmp_path / "bomb.png", "million pixels")


@pytest.mark.parametrize(
    "arguments",
    [
        {"mean": (0, 0, 0)},
        {"std": (1, 1, 1)},
        {"mean": (0, 0), "std": (1, 1, 1)},
        {"mean": (0, 0, 0), "std": (1, 0, 1)},
        {"mean": ("a", "b", "c"), "std": (1, 1, 1)},
        {"mean": (0, 0, float("nan")), "std": (1, 1, 1)},
        {"fit": "squeeze"},
        {"background": "no such colour"},
        {"size": 0},
    ],
)
def test_bad_arguments_of_load(tmp_path: Path, arguments: dict) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    with pytest.raises(ContextDiffusionError):
        load_image_as_tensor(tmp_path / "a.png", **arguments)
