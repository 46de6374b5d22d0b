"""Image files and PIL images -> tensors."""

from __future__ import annotations

import logging
import os
import struct
import warnings
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..choices import FITS
from ..errors import ContextDiffusionError
from ..files import open_regular
from .fit import Color, Size, check_size, fit_image, parse_color

if TYPE_CHECKING:
    from PIL import Image

logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff"})

# 10000 x 10000. A small file can claim a size that would not fit into memory (a decompression bomb).
MAX_PIXELS = 100_000_000

# What the decoders of Pillow raise on damaged files, besides OSError.
_DECODER_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    struct.error,
    zlib.error,
)

_ORIENTATION_TAG = 0x0112


def load_image_as_tensor(
    path: str | os.PathLike[str],
    size: Size | None = None,
    mean: Sequence[float] | Tensor | None = None,
    std: Sequence[float] | Tensor | None = None,
    *,
    fit: str = "crop",
    background: Color = "white",
) -> Tensor:
    """Read an image file: rotated as its EXIF data say, first frame, transparency laid over `background`.

    Palette, grey, 16-bit and CMYK files become RGB.

    Args:
        path: the file.
        size: side of a square or (height, width) in pixels; None keeps the file's size.
        mean: per channel, subtracted; together with `std` only (see `calculate_mean_std`).
        std: per channel, divided by.
        fit: `crop`, `pad` or `stretch`, see `fit_image`.
        background: colour under transparent pixels and around padded images.

    Returns:
        (3, H, W), float32, in [0, 1]; with `mean` and `std`, (x - mean) / std.

    Raises:
        ContextDiffusionError: the file is missing, a folder, empty, damaged, too large or not an image,
            or an argument is wrong.
    """
    statistics = _check_statistics(mean, std)
    _check_arguments(size, fit, background)
    path = Path(path)
    try:
        image = image_from_pil(_decode(path), size, fit=fit, background=background)
    except ContextDiffusionError as error:
        raise ContextDiffusionError(str(error) if str(path) in str(error) else f"{path}: {error}") from error
    if statistics is not None:
        image = (image - statistics[0]) / statistics[1]
    return image


def image_from_pil(
    pil: Image.Image, size: Size | None = None, *, fit: str = "crop", background: Color = "white"
) -> Tensor:
    """Convert a PIL image of any mode, at its current frame, rotated as its EXIF data say.

    Args:
        pil: the image.
        size: side of a square or (height, width) in pixels; None keeps the image's size.
        fit: `crop`, `pad` or `stretch`, see `fit_image`.
        background: colour under transparent pixels and around padded images.

    Returns:
        (3, H, W), float32, in [0, 1].

    Raises:
        ContextDiffusionError: not a PIL image, one without pixels or of a mode without a known range, or
            a wrong argument.
    """
    from PIL import Image

    if not isinstance(pil, Image.Image):
        raise ContextDiffusionError(f"got {type(pil).__name__}, expected a PIL image")
    _check_arguments(size, fit, background)
    if 0 in pil.size:
        raise ContextDiffusionError(f"the PIL image has no pixels: its size is {pil.width} x {pil.height}")
    pixels = _upright(_pixels(_with_alpha(pil)), _orientation(pil))
    color, alpha = pixels[..., :3], pixels[..., 3:]
    if alpha.shape[-1]:
        color = color * alpha + parse_color(background).numpy() * (1 - alpha)
    image = torch.from_numpy(np.ascontiguousarray(color.transpose(2, 0, 1)))
    return image if size is None else fit_image(image, size, fit, background)


def list_images(folder: str | os.PathLike[str], recursive: bool = False) -> list[Path]:
    """The image files of a folder (known by their suffix, hidden ones left out), sorted by path.

    Raises:
        ContextDiffusionError: no such folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ContextDiffusionError(f"folder {folder} {'is a file' if folder.exists() else 'does not exist'}")
    found = folder.rglob("*") if recursive else folder.iterdir()
    return sorted(
        path
        for path in found
        if path.suffix.lower() in IMAGE_SUFFIXES
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and path.is_file()
    )


def _decode(path: Path) -> Image.Image:
    """Open a file and decode its first frame."""
    from PIL import Image, UnidentifiedImageError

    with open_regular(path, "an image file") as file:
        try:
            if not file.read(1):
                raise ContextDiffusionError(f"{path} is empty (0 bytes); give an image file")
            file.seek(0)
            with warnings.catch_warnings():
                # Pillow warns of large pictures (the limit here is ours) and of damaged metadata.
                warnings.simplefilter("ignore")
                pil = Image.open(file)
                if pil.width * pil.height > MAX_PIXELS:
                    raise Image.DecompressionBombError
                pil.load()
                _orientation(pil)  # read and kept by Pillow while the file is open
            return pil
        except ContextDiffusionError:
            raise
        except UnidentifiedImageError as error:
            raise ContextDiffusionError(
                f"{path} is not an image that can be read; expected PNG, JPEG, WebP, GIF, BMP or TIFF"
            ) from error
        except Image.DecompressionBombError as error:
            raise ContextDiffusionError(
                f"{path} claims more than {MAX_PIXELS // 10**6} million pixels; make it smaller first"
            ) from error
        except _DECODER_ERRORS as error:
            raise ContextDiffusionError(
                f"{path} is damaged or cut off ({error}); get the file anew or save it again"
            ) from error


def _check_arguments(size: Size | None, fit: str, background: Color) -> None:
    """Refuse wrong arguments before any pixel is decoded, whether or not this image needs them."""
    if size is not None:
        check_size(size)
    if fit not in FITS:
        raise ContextDiffusionError(f"fit is {fit!r}; choose one of {', '.join(FITS)}")
    parse_color(background)


def _with_alpha(pil: Image.Image) -> Image.Image:
    """Turn every way of saying transparent into an alpha channel, and unusual modes into RGB."""
    if pil.mode in ("RGB", "RGBA", "L", "F", "I") or pil.mode.startswith("I;16"):
        return pil.convert("RGBA") if "transparency" in pil.info and pil.mode in ("L", "RGB") else pil
    has_alpha = pil.mode in ("LA", "La", "PA", "RGBa") or "transparency" in pil.info
    try:
        if pil.mode == "La":  # Pillow turns premultiplied grey into LA alone
            pil = pil.convert("LA")
        return pil.convert("RGBA" if has_alpha else "RGB")
    except (ValueError, OSError) as error:
        raise ContextDiffusionError(f"colour mode {pil.mode} is not known; save the image as RGB") from error


def _pixels(pil: Image.Image) -> np.ndarray:
    """(H, W, 3 or 4), float32, in [0, 1]."""
    values = np.asarray(pil)
    pixels: np.ndarray
    if pil.mode == "F":
        pixels = values.astype(np.float32)
        if not (np.isfinite(pixels).all() and pixels.min() >= 0 and pixels.max() <= 1):
            raise ContextDiffusionError(
                f"floating-point pixels reach from {pixels.min():.4g} to {pixels.max():.4g}; expected [0, 1]"
            )
    elif pil.mode == "I" or pil.mode.startswith("I;16"):
        # Mode I has 32 bits, but files of 16 bits may come as I.
        if values.min() < 0 or values.max() > 65535:
            raise ContextDiffusionError(
                f"integer pixels reach from {values.min()} to {values.max()}; expected 16 bits, 0 to 65535"
            )
        pixels = values.astype(np.float32) / 65535
    else:
        pixels = values.astype(np.float32) / 255
    return pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=2)


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Undo the rotation and mirroring that an EXIF orientation of 1 to 8 names."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels


def _orientation(pil: Image.Image) -> int:
    """EXIF orientation, 1 (upright) where there is none."""
    try:
        return pil.getexif().get(_ORIENTATION_TAG, 1)
    except _DECODER_ERRORS as error:  # damaged metadata do not make the picture unusable
        logger.debug("EXIF data cannot be read: %s", error)
        return 1


def _check_statistics(
    mean: Sequence[float] | Tensor | None, std: Sequence[float] | Tensor | None
) -> tuple[Tensor, Tensor] | None:
    """mean and std as (3, 1, 1), or None for none."""
    if mean is None and std is None:
        return None
    if mean is None or std is None:
        raise ContextDiffusionError("mean and std go together: give both or neither")
    pair = []
    for name, values in (("mean", mean), ("std", std)):
        try:
            tensor = torch.as_tensor(values, dtype=torch.float32).cpu()
        except (TypeError, ValueError, RuntimeError) as error:
            raise ContextDiffusionError(f"{name} is {values!r}; give three numbers, one a channel") from error
        if tensor.numel() != 3 or not torch.isfinite(tensor).all():
            raise ContextDiffusionError(f"{name} is {values!r}; give three finite numbers, one a channel")
        pair.append(tensor.reshape(3, 1, 1))
    if not (pair[1] > 0).all():
        raise ContextDiffusionError(f"std is {std!r}; all three must be above 0")
    return pair[0], pair[1]
