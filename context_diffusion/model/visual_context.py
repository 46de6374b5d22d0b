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


def clip_normalise(seen: Tensor) -> Tensor:
    """What the image encoder sees, (B, 3, size, size) in [0, 1], by CLIP's statistics of each channel."""
    mean = torch.tensor(CLIP_MEAN, device=seen.device, dtype=seen.dtype).view(3, 1, 1)
    std = torch.tensor(CLIP_STD, device=seen.device, dtype=seen.dtype).view(3, 1, 1)
    return (seen - mean) / std


def clip_preprocess(images: Tensor, size: int) -> Tensor:
    """Images (B, 3, H, W) in [0, 1] -> the encoder's input, (B, 3, size, size): `clip_crop`, then `clip_normalise`."""
    return clip_normalise(clip_crop(images, size))


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


class Join:
    """The one join of k images (section 3.2): the weighted mean of their features, their sum, or all of them.

    Features come a few images at a time; `mean` and `sum` keep one running total, so that memory does not depend on k.

    Args:
        weights: w (k,), one an image, from `check_weights`; or (R, k), for R sums over the same images at once.
        aggregation: `mean`: sum of w f / sum of w; `sum` (the paper's second version): without the division; `concat`:
            the w f of every image.

    Raises:
        ContextDiffusionError: an unknown aggregation.
    """

    def __init__(self, weights: Tensor, aggregation: str) -> None:
        if aggregation not in AGGREGATIONS:
            raise ContextDiffusionError(f"aggregation is {aggregation!r}; choose one of {', '.join(AGGREGATIONS)}")
        self._weights, self._aggregation = weights, aggregation
        self._added = 0
        self._parts: list[Tensor] = []

    def add(self, features: Tensor) -> None:
        """The features f of the next m images, (m, ...)."""
        weights = self._weights[..., self._added : self._added + len(features)].to(features)
        self._added += len(features)
        if weights.ndim == 2:
            total = torch.einsum("rk,k...->r...", weights, features)
        else:
            weighted = features * weights.view(-1, *[1] * (features.ndim - 1))
            if self._aggregation == "concat":
                self._parts.append(weighted)
                return
            total = weighted.sum(dim=0, keepdim=True)
        self._parts = [self._parts[0] + total if self._parts else total]

    def result(self) -> Tensor:
        """(1, ...), or (R, ...); (k, ...) with each image's features in its row for `concat`."""
        joined = torch.cat(self._parts)
        return joined / self._weights.sum().to(joined) if self._aggregation == "mean" else joined


def check_weights(weights: Sequence[float] | Tensor | None, k: int) -> Tensor:
    """Per-image weights as a float32 tensor (k,); all 1 when None.

    Raises:
        ContextDiffusionError: k is 0, a count other than k, a value that is none of `ranges.CONTEXT_WEIGHT`, or all
            zero.
    """
    if k == 0:
        raise ContextDiffusionError("0 context images: give at least one, or leave the visual context out")
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
    seen: Tensor,
    weights: Sequence[float] | Tensor | None = None,
    aggregation: str = "mean",
    chunk_size: int = 8,
    device: torch.device | None = None,
    image_tokens: Callable[[nn.Module, Tensor], Tensor] = image_tokens,
) -> Tensor:
    """Encode k context images and join them (h^V before the projector), for one row or several.

    Args:
        image_encoder: a transformers CLIPVisionModel.
        seen: (B, k, 3, size, size) in [0, 1], from `clip_crop`.
        weights: one a context image, all 1 when None.
        aggregation: `mean`, `sum` or `concat`, see `Join`.
        chunk_size: how many images of a row go through the encoder at once.
        device: where the encoder runs, if its weights are elsewhere between calls (offloading).
        image_tokens: which tokens of the encoder's.

    Returns:
        (B, N, d_v); (B, k * N, d_v) for `concat`.

    Raises:
        ContextDiffusionError: no image, an unknown aggregation, or weights that do not fit.
    """
    join = Join(check_weights(weights, seen.shape[1]), aggregation)
    parameter = next(image_encoder.parameters())
    for chunk in seen.split(chunk_size, dim=1):
        pixels = clip_normalise(chunk.flatten(0, 1)).to(device or parameter.device, parameter.dtype)
        tokens = image_tokens(image_encoder, pixels)
        join.add(tokens.unflatten(0, chunk.shape[:2]).transpose(0, 1))
    return join.result().transpose(0, 1).flatten(1, 2)


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
