"""Reading and writing images, against PIL and numpy by hand."""

from __future__ import annotations

import errno
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from context_diffusion import ContextDiffusionError, calculate_mean_std, load_image_as_tensor
from context_diffusion.images import (
    check_images,
    fit_image,
    image_from_pil,
    image_grid,
    parse_color,
    save_image,
    to_pil,
)


def random_pixels(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def as_hwc(image: torch.Tensor) -> np.ndarray:
    return image.permute(1, 2, 0).numpy()


# Reading


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


# Fits


def test_crop_takes_the_middle() -> None:
    image = torch.zeros(3, 8, 16)
    image[:, :, 4:12] = 1
    assert torch.equal(fit_image(image, 8, "crop"), torch.ones(3, 8, 8))


def test_pad_fills_with_the_background() -> None:
    fitted = fit_image(torch.zeros(3, 8, 16), 16, "pad", background=(1.0, 0.5, 0.25))
    assert torch.equal(fitted[:, 4:12], torch.zeros(3, 8, 16))
    border = torch.tensor([1.0, 0.5, 0.25]).view(3, 1, 1).expand(3, 4, 16)
    assert torch.equal(fitted[:, :4], border) and torch.equal(fitted[:, 12:], border)


def test_stretch_agrees_with_pil() -> None:
    pixels = random_pixels(40, 20)
    expected = np.asarray(Image.fromarray(pixels).resize((16, 12), Image.Resampling.BICUBIC)) / 255
    fitted = fit_image(torch.from_numpy(pixels).permute(2, 0, 1) / 255, (12, 16), "stretch")
    assert np.abs(as_hwc(fitted) - expected).max() < 2.5 / 255  # PIL rounds after each of two passes


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (37, 11), (64, 64)])
def test_every_fit_gives_the_size_and_range(fit: str, shape: tuple[int, int]) -> None:
    batch = torch.rand(2, 3, *shape, generator=torch.Generator().manual_seed(0))
    fitted = fit_image(batch, (24, 32), fit)
    assert fitted.shape == (2, 3, 24, 32)
    assert 0 <= fitted.min() and fitted.max() <= 1


@pytest.mark.parametrize("size", [0, -4, 3.5, (4,), (4, 0), "128", True, (1, 2, 3)])
def test_bad_sizes(size: object) -> None:
    with pytest.raises(ContextDiffusionError, match="size"):
        fit_image(torch.zeros(3, 4, 4), size)


def test_colors() -> None:
    assert parse_color("#ff0080").tolist() == pytest.approx([1, 0, 128 / 255])
    for bad in ("no such colour", (1, 2, 3), (0.5, 0.5), 7, (0, float("nan"), 0)):
        with pytest.raises(ContextDiffusionError, match="colour"):
            parse_color(bad)


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
            assert image.shape == (3, 16, 16) and 0 <= image.min() and image.max() <= 1


def test_decompression_bomb(tmp_path: Path) -> None:
    """A PNG of 60 bytes that claims 400 million pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    for side in (12000, 20000, 60000):  # Pillow itself only warns of the first and refuses the last
        header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
        chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
        (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)
        expect_error(tmp_path / "bomb.png", "million pixels")


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


# Writing


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
