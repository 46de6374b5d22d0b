"""What a user hands the pipeline, read into lists of tensors, or one clear line about what is wrong."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import ContextDiffusionError
from ..images import check_images, image_from_pil
from ..model.visual_context import clip_crop
from ..ranges import CONTEXT_WEIGHT

_LARGEST = 10_000

# Context images as the image encoder sees them, and a weight for each (None: all alike).
Context = tuple[list[Tensor], list[float] | None]


@dataclass(frozen=True)
class Request:
    """What a call of the pipeline goes by, read: each has as many rows as the batch, or one for all, or is None.

    Attributes:
        prompt, negative_prompt: texts.
        prompt_embeds, negative_prompt_embeds: (B, T, d_c) in the place of a text.
        contexts: from `read_context`.
        context_embeds: projected h^V (B, N, d_c) in their place.
        queries: images (3, H, W) that give the layout.
        starts: images (3, H, W) to start from.
    """

    prompt: list[str] | None = None
    negative_prompt: list[str] | None = None
    prompt_embeds: Tensor | None = None
    negative_prompt_embeds: Tensor | None = None
    contexts: list[Context] | None = None
    context_embeds: Tensor | None = None
    queries: list[Tensor] | None = None
    starts: list[Tensor] | None = None

    @property
    def has_text(self) -> bool:
        """Whether a text makes the branch with text another than that without."""
        if self.prompt_embeds is not None or self.negative_prompt_embeds is not None:
            return True
        return any(self.prompt or []) or any(self.negative_prompt or [])

    @property
    def has_context(self) -> bool:
        """Whether any row has a visual context."""
        return self.context_embeds is not None or any(images for images, _ in self.contexts or [])

    def rows(self, width: int) -> int:
        """The number of rows that all agree on.

        Args:
            width: d_c.

        Raises:
            ContextDiffusionError: nothing to go by, a context given twice, embeddings of another width, or numbers of
                rows that cannot be matched.
        """
        others = (self.prompt, self.prompt_embeds, self.queries, self.starts)
        if not self.has_context and all(value is None for value in others):
            raise ContextDiffusionError("nothing to go by: give a prompt, context images or a query image")
        if self.context_embeds is not None and self.contexts is not None:
            raise ContextDiffusionError("got both context_images and context_embeds: give one of them")
        for name in ("prompt_embeds", "negative_prompt_embeds", "context_embeds"):
            if getattr(self, name) is not None:
                check_embeds(getattr(self, name), name, width)
        return common_batch(
            prompt=self.prompt,
            negative_prompt=self.negative_prompt,
            prompt_embeds=self.prompt_embeds,
            negative_prompt_embeds=self.negative_prompt_embeds,
            context_images=self.contexts,
            context_embeds=self.context_embeds,
            query=self.queries,
            image=self.starts,
        )


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


def read_context(images: object, weights: object = None, size: int | None = None) -> list[Context]:
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
    if not (_is_list(weights) and any(entry is None or _is_list(entry) for entry in weights)):
        weights = [weights] * len(rows)
    elif len(weights) != len(rows):
        raise ContextDiffusionError(
            f"context_weights has {len(weights)} rows, context_images {len(rows)}: give one for each row"
        )
    numbers = [_read_weights(row) for row in weights]
    return [(row, each if row else None) for row, each in zip(rows, numbers, strict=True)]


def _read_weights(numbers: object) -> list[float] | None:
    if numbers is not None and not _is_list(numbers):
        got = type(numbers).__name__
        raise ContextDiffusionError(f"context_weights: got {got}, expected a list of numbers, or one for each row")
    return None if numbers is None else [CONTEXT_WEIGHT.check(context_weights=number)[0] for number in numbers]


def _is_list(value: object) -> bool:
    return isinstance(value, (list, tuple)) or getattr(value, "ndim", 0) > 0


def _is_row(entry: object) -> bool:
    several = isinstance(entry, Tensor) and entry.ndim == 4
    return entry is None or several or isinstance(entry, (list, tuple))


def read_prompts(value: object, name: str) -> list[str] | None:
    """A prompt or a list of them as a list; None stays None.

    Raises:
        ContextDiffusionError: not text, half of a character in it, or an empty list.
    """
    if value is None:
        return None
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, (list, tuple)) or not texts:
        got = "an empty list" if isinstance(texts, (list, tuple)) else type(texts).__name__
        raise ContextDiffusionError(f"{name}: got {got}, expected a string or a list of strings")
    for place, text in enumerate(texts, 1):
        if not isinstance(text, str):
            got = type(text).__name__
            raise ContextDiffusionError(f'{name}: got {got} as text {place}, expected a string; "" is no text')
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ContextDiffusionError(
                f"{name}: {text[error.start]!r} at place {error.start} is half of a character and no text: leave it out"
            ) from error
    return list(texts)


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
    """Tokens (B, T, width), see `check_values`.

    Raises:
        ContextDiffusionError: another type or shape, an empty one, or values that nothing can be computed with.
    """
    if not isinstance(value, Tensor) or value.ndim != 3 or value.shape[-1] != width or 0 in value.shape:
        got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ContextDiffusionError(f"{name}: got {got}, expected a tensor (B, tokens, {width})")
    check_values(value, name)


def check_values(value: Tensor, name: str) -> None:
    """Real numbers of the size that networks work with: no NaN, no infinity, nothing beyond 10,000.

    Raises:
        ContextDiffusionError: otherwise.
    """
    if not value.is_floating_point():
        raise ContextDiffusionError(f"{name}: dtype is {value.dtype}, expected floating point")
    if not value.abs().max() <= _LARGEST:
        raise ContextDiffusionError(f"{name} holds NaN or values beyond {_LARGEST}: check where it comes from")


def check_callback(callback: object, names: object, known: Sequence[str]) -> None:
    """A function or None, and the names of the tensors it wants.

    Raises:
        ContextDiffusionError: anything else.
    """
    if callback is not None and not callable(callback):
        got = type(callback).__name__
        raise ContextDiffusionError(f"callback_on_step_end: got {got}, expected a function (pipe, step, t, tensors)")
    choice = ", ".join(known)
    if not isinstance(names, (list, tuple, set)) or not all(isinstance(name, str) for name in names):
        raise ContextDiffusionError(f"callback_on_step_end_tensor_inputs is {names!r}, expected a list out of {choice}")
    unknown = sorted(set(names) - set(known))
    if unknown:
        raise ContextDiffusionError(f"callbacks cannot get {', '.join(unknown)}; choose from {choice}")


def read_changes(changed: object) -> dict[str, Tensor]:
    """What a callback gave back: tensors by their names, or None for no change.

    Raises:
        ContextDiffusionError: anything else.
    """
    if changed is not None and not isinstance(changed, dict):
        got = type(changed).__name__
        raise ContextDiffusionError(f"callback_on_step_end returned {got}, expected a dict of tensors or None")
    for name, value in (changed or {}).items():
        if not isinstance(value, Tensor) and (value is not None or name != "query_map"):
            got = type(value).__name__
            raise ContextDiffusionError(f"callback_on_step_end returned {got} as {name}, expected a tensor")
    return changed or {}


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


def spread(tensor: Tensor | None, rows: int, repeats: int) -> Tensor | None:
    """(1 or rows, ...) -> (rows * repeats, ...), a row's repeats in succession; None stays None."""
    return None if tensor is None else tensor.expand(rows, *tensor.shape[1:]).repeat_interleave(repeats, 0)
