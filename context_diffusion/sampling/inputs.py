"""What a user hands the pipeline, read into lists of tensors, or one clear line about what is wrong."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ..errors import ContextDiffusionError
from ..images import check_images, image_from_pil
from ..model.visual_context import clip_crop
from ..ranges import number


def read_images(value: object, name: str) -> list[Tensor]:
    """One image or several, PIL or tensors, as a list of (3, H, W) float32 in [0, 1].

    Args:
        value: a PIL image, a tensor (3, H, W) or (B, 3, H, W), or a list of these.
        name: the argument's name, for messages.

    Raises:
        ContextDiffusionError: another type, or a tensor that is no image.
    """
    return list(_each_image(value, name))


def _each_image(value: object, name: str) -> Iterator[Tensor]:
    """The images of `read_images`, each decoded when its turn comes."""
    from PIL import Image

    if isinstance(value, Image.Image):
        yield image_from_pil(value)
        return
    if isinstance(value, Tensor):
        yield from check_images(value, name).float()
        return
    if isinstance(value, (list, tuple)) and value:
        for entry in value:
            yield from _each_image(entry, name)
        return
    got = "an empty list" if isinstance(value, (list, tuple)) else type(value).__name__
    raise ContextDiffusionError(
        f"{name}: got {got}, expected a PIL image, a tensor (3, H, W) in [0, 1], or a list of these"
    )


def read_context(
    images: object, weights: object = None, size: int | None = None
) -> list[tuple[list[Tensor], list[float] | None]]:
    """Context images, shared by the batch or a list for each of its rows.

    Args:
        images: PIL images or tensors (a flat list, or a tensor (k, 3, H, W)): one context for all rows. A
            list of lists (or of 4-D tensors; None or an empty list for no context): one for each row.
        weights: a number an image: a flat list, for each row alike, or a list of lists.
        size: side of what the image encoder sees, in pixels. Each image is cropped to it when it is read (see
            `clip_crop`), so that memory holds one whole photo at a time. None: as they are.

    Returns:
        For each context its images and its weights (None: all alike); one entry when shared.

    Raises:
        ContextDiffusionError: wrong types, or weights that do not fit the rows.
    """
    nested = isinstance(images, (list, tuple)) and any(_is_row(entry) for entry in images)
    if nested and not all(_is_row(entry) for entry in images):
        raise ContextDiffusionError(
            "context_images mixes images and lists of images: give one flat list, or one list for each row"
        )
    rows = []
    for row in images if nested else [images]:
        nothing = row is None or (isinstance(row, (list, tuple)) and not row)
        each = () if nothing else _each_image(row, "context_images")
        rows.append([image if size is None else clip_crop(image[None], size)[0] for image in each])
    if weights is None:
        return [(row, None) for row in rows]
    if isinstance(weights, Tensor):
        weights = weights.tolist()
    if not isinstance(weights, (list, tuple)):
        got = type(weights).__name__
        raise ContextDiffusionError(f"context_weights: got {got}, expected a list of numbers")
    if any(isinstance(entry, (list, tuple)) for entry in weights):
        if len(weights) != len(rows):
            raise ContextDiffusionError(
                f"context_weights has {len(weights)} rows, context_images {len(rows)}: give one for each row"
            )
        per_row = list(weights)
    else:
        per_row = [weights] * len(rows)
    for weight in (weight for numbers in per_row for weight in numbers or []):
        number().check(context_weights=weight)
    return [
        (row, list(numbers) if row and numbers is not None else None)
        for row, numbers in zip(rows, per_row, strict=True)
    ]


def _is_row(entry: object) -> bool:
    several = isinstance(entry, Tensor) and entry.ndim == 4
    return entry is None or several or isinstance(entry, (list, tuple))


def read_prompts(value: object, name: str) -> list[str] | None:
    """A prompt or a list of them as a list; None stays None.

    Raises:
        ContextDiffusionError: not text, or an empty list.
    """
    if value is None:
        return None
    if isinstance(value, str):
        return [value]
    if isinstance(value, (list, tuple)) and value and all(isinstance(text, str) for text in value):
        return list(value)
    got = "an empty list" if isinstance(value, (list, tuple)) and not value else type(value).__name__
    raise ContextDiffusionError(f"{name}: got {got}, expected a string or a list of strings")


def common_batch(**inputs: Sequence | Tensor | None) -> int:
    """The number of rows that all inputs agree on: each has as many, or one for all.

    Args:
        inputs: name -> rows; None does not count.

    Raises:
        ContextDiffusionError: numbers that cannot be matched.
    """
    counts = {name: len(rows) for name, rows in inputs.items() if rows is not None}
    batch = max(counts.values(), default=1)
    if any(count not in (1, batch) for count in counts.values()):
        listed = ", ".join(f"{count} of {name}" for name, count in counts.items())
        raise ContextDiffusionError(f"batch sizes do not match: {listed}; give one, or {batch}, of each")
    return batch


def check_embeds(value: object, name: str, width: int) -> None:
    """Tokens (B, T, width), all finite.

    Raises:
        ContextDiffusionError: another type or shape, or NaN.
    """
    if not isinstance(value, Tensor) or value.ndim != 3 or value.shape[-1] != width:
        got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ContextDiffusionError(f"{name}: got {got}, expected a tensor (B, tokens, {width})")
    check_finite(value, name)


def check_finite(value: Tensor, name: str) -> None:
    """No NaN, no infinity.

    Raises:
        ContextDiffusionError: otherwise.
    """
    if not torch.isfinite(value).all():
        raise ContextDiffusionError(f"{name} holds NaN or infinite values: check where it comes from")


def check_generator(generator: object, images: int) -> None:
    """None, one torch.Generator, or one for each image of the batch.

    Raises:
        ContextDiffusionError: anything else.
    """
    if generator is None or isinstance(generator, torch.Generator):
        return
    if not isinstance(generator, Sequence) or not all(isinstance(one, torch.Generator) for one in generator):
        raise ContextDiffusionError(
            f"generator: got {type(generator).__name__}, expected a torch.Generator or a list of them"
        )
    if len(generator) != images:
        raise ContextDiffusionError(f"{len(generator)} generators for {images} images: give one for each")
