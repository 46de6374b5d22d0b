"""k context images -> CLIP tokens -> one averaged token sequence -> projected h^V (section 3.2 of the paper)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ..choices import AGGREGATIONS
from ..errors import ContextDiffusionError
from ..ranges import CONTEXT_WEIGHT

# The statistics every CLIP image encoder was trained with, per channel of an RGB image in [0, 1].
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def clip_crop(images: Tensor, size: int) -> Tensor:
    """What the image encoder sees of the images: shorter side to `size`, centre crop, 8-bit grid.

    The arithmetic is the one that ComfyUI applies before its CLIP vision models (antialiased bicubic, rounding to
    1/255), so that a model trained here reads the same numbers there. A second pass changes nothing.

    Args:
        images: (B, 3, H, W) in [0, 1].
        size: side of the encoder's square input in pixels.

    Returns:
        (B, 3, size, size) in [0, 1].
    """
    height, width = images.shape[-2:]
    if (height, width) != (size, size):
        scale = size / min(height, width)
        resized = (round(scale * height), round(scale * width))
        images = nn.functional.interpolate(images, size=resized, mode="bicubic", antialias=True)
        top, left = (resized[0] - size) // 2, (resized[1] - size) // 2
        images = images[..., top : top + size, left : left + size]
    return torch.clip(255.0 * images, 0, 255).round() / 255.0


def clip_preprocess(images: Tensor, size: int) -> Tensor:
    """Bring images to the encoder's input: `clip_crop`, then CLIP's statistics.

    Args:
        images: (B, 3, H, W) in [0, 1].
        size: side of the encoder's square input in pixels.

    Returns:
        (B, 3, size, size), normalised per channel.
    """
    mean = torch.tensor(CLIP_MEAN, device=images.device, dtype=images.dtype).view(3, 1, 1)
    std = torch.tensor(CLIP_STD, device=images.device, dtype=images.dtype).view(3, 1, 1)
    return (clip_crop(images, size) - mean) / std


def n_tokens(image_size: int, patch_size: int) -> int:
    """N, the image encoder's tokens of one image: its patches and one for the whole."""
    return (image_size // patch_size) ** 2 + 1


def image_tokens(image_encoder: nn.Module, pixels: Tensor) -> Tensor:
    """The image encoder's tokens of each image: its last hidden state.

    Args:
        image_encoder: a transformers CLIPVisionModel.
        pixels: (B, 3, size, size) from `clip_preprocess`.

    Returns:
        (B, N, d_v).
    """
    return image_encoder(pixel_values=pixels).last_hidden_state


def join_rows(tokens: Tensor, aggregation: str) -> Tensor:
    """The token sequences of k images a row, equally weighted, into one a row.

    Args:
        tokens: (B, k, N, d).
        aggregation: `mean`, `sum` or `concat`.

    Returns:
        (B, N, d), or (B, k * N, d) for `concat`.
    """
    if aggregation == "concat":
        return tokens.flatten(1, 2)
    return tokens.sum(1) if aggregation == "sum" else tokens.mean(1)


def aggregate_tokens(
    tokens: Tensor, weights: Sequence[float] | Tensor | None = None, aggregation: str = "mean"
) -> Tensor:
    """Join the token sequences of k images into one, token by token (section 3.2).

    Args:
        tokens: (k, N, d), the encoder's last hidden state for each image.
        weights: one number an image, all 1 when None. `mean` divides by their sum; `sum` and `concat` scale each
            image's tokens.
        aggregation: `mean`, `sum` (the paper's second version) or `concat` (keeps every image's tokens).

    Returns:
        (1, N, d), or (1, k * N, d) for `concat`.

    Raises:
        ContextDiffusionError: unknown aggregation, wrong number of weights, or weights that cannot be averaged.
    """
    if aggregation not in AGGREGATIONS:
        raise ContextDiffusionError(f"aggregation is {aggregation!r}; choose one of {', '.join(AGGREGATIONS)}")
    join = RunningJoin(check_weights(weights, tokens.shape[0]), aggregation)
    join.add(tokens)
    return join.result().reshape(1, -1, tokens.shape[-1])


class RunningJoin:
    """`aggregate_tokens` for features that come a few images at a time, of any shape behind the image axis.

    `mean` and `sum` keep one running total, so that memory does not depend on the number of images.

    Args:
        weights: (k,), one an image, from `check_weights`.
        aggregation: `mean`, `sum` or `concat`.
    """

    def __init__(self, weights: Tensor, aggregation: str) -> None:
        self._weights, self._aggregation = weights, aggregation
        self._added = 0
        self._parts: list[Tensor] = []

    def add(self, features: Tensor) -> None:
        """The features of the next m images, (m, ...)."""
        weights = self._weights[self._added : self._added + len(features)].to(features)
        weighted = features * weights.view(-1, *[1] * (features.ndim - 1))
        self._added += len(features)
        if self._aggregation == "concat":
            self._parts.append(weighted)
            return
        total = weighted.sum(dim=0, keepdim=True)
        self._parts = [self._parts[0] + total if self._parts else total]

    def result(self) -> Tensor:
        """(1, ...), or (k, ...) with each image's features in its row for `concat`."""
        joined = torch.cat(self._parts)
        return joined / self._weights.sum().to(joined) if self._aggregation == "mean" else joined


def check_weights(weights: Sequence[float] | Tensor | None, k: int) -> Tensor:
    """Per-image weights as a float32 tensor (k,); all 1 when None.

    Raises:
        ContextDiffusionError: a count other than k, a value that is none of `ranges.CONTEXT_WEIGHT`, or all zero.
    """
    if weights is None:
        return torch.ones(k)
    weights = torch.as_tensor(weights, dtype=torch.float32).flatten()
    if len(weights) != k:
        raise ContextDiffusionError(f"{len(weights)} context weights for {k} context images: give one for each image")
    if not all(weight in CONTEXT_WEIGHT for weight in weights) or weights.sum() == 0:
        raise ContextDiffusionError(
            f"context weights are {weights.tolist()}: each must be {CONTEXT_WEIGHT}, not all zero"
        )
    return weights


def encode_visual_context(
    image_encoder: nn.Module,
    images: Tensor,
    weights: Sequence[float] | Tensor | None = None,
    aggregation: str = "mean",
    chunk_size: int = 8,
    device: torch.device | None = None,
    image_tokens: Callable[[nn.Module, Tensor], Tensor] = image_tokens,
) -> Tensor:
    """Encode k context images and join them (h^V before the projector).

    `mean` and `sum` keep one running total, so that memory depends on `chunk_size` and not on k.

    Args:
        image_encoder: a transformers CLIPVisionModel.
        images: (k, 3, H, W) in [0, 1].
        weights: one a context image, see `aggregate_tokens`.
        aggregation: `mean`, `sum` or `concat`.
        chunk_size: how many images go through the encoder at once.
        device: where the encoder runs, if its weights are elsewhere between calls (offloading).
        image_tokens: which tokens of the encoder's.

    Returns:
        (1, N, d_v); (1, k * N, d_v) for `concat`.

    Raises:
        ContextDiffusionError: no image, an unknown aggregation, or weights that do not fit.
    """
    k = images.shape[0]
    if k == 0:
        raise ContextDiffusionError("0 context images: give at least one, or leave the visual context out")
    if aggregation not in AGGREGATIONS:
        raise ContextDiffusionError(f"aggregation is {aggregation!r}; choose one of {', '.join(AGGREGATIONS)}")
    weights = check_weights(weights, k)
    parameter = next(image_encoder.parameters())
    size = image_encoder.config.image_size
    join = RunningJoin(weights, aggregation)
    for start in range(0, k, chunk_size):
        chunk = clip_preprocess(images[start : start + chunk_size].float(), size)
        chunk = chunk.to(device or parameter.device, parameter.dtype)
        join.add(image_tokens(image_encoder, chunk))
    joined = join.result()
    return joined.reshape(1, -1, joined.shape[-1])


class ContextProjector(nn.Module):
    """The linear map from the image encoder's width d_v to the text width d_c.

    Args:
        vision_width: d_v.
        text_width: d_c, the width of the UNet's cross-attention.
    """

    def __init__(self, vision_width: int, text_width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(vision_width, text_width)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, N, d_v) -> h^V (B, N, d_c)."""
        return self.linear(tokens)


def null_context(batch: int, n_tokens: int, width: int, like: Tensor) -> Tensor:
    """The visual context that says nothing: N zero tokens after the projector, (batch, N, d_c).

    Zeros cost no encoding and give positive and negative conditionings the same length, so that both run in one
    UNet call. The paper feeds black images instead.
    """
    return like.new_zeros(batch, n_tokens, width)
