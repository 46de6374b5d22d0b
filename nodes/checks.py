"""What comes out of a socket, checked before anything is done with it; `fits` has what must fit another part.

Imported when a node runs, never at start-up.
Every message names the input, what was got, what was expected and the connection to change.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..context_diffusion.errors import ContextDiffusionError

# Resizing overshoots [0, 1] by a little, which the host clips where it matters; images of another range are a mistake.
_LOWEST, _HIGHEST = -0.5, 1.5


def check_present(value: object, name: str, hint: str) -> None:
    """Refuse an empty socket: not connected, or a loader gives None for a part that its file lacks.

    Raises:
        ContextDiffusionError: `value` is None.
    """
    if value is None:
        raise ContextDiffusionError(f"{name} is empty: nothing is connected, or its loader has no such part; {hint}")


def rgb_images(images: object, name: str) -> Tensor:
    """An IMAGE as RGB: grey is repeated, transparency is laid over white.

    Args:
        images: what the socket gave.
        name: the input, for messages.

    Returns:
        (B, H, W, 3), the same values for RGB images.

    Raises:
        ContextDiffusionError: a mask, an empty batch, channels that are no image's, NaN, or another range.
    """
    if not isinstance(images, Tensor) or not images.is_floating_point():
        got = images.dtype if isinstance(images, Tensor) else type(images).__name__
        raise ContextDiffusionError(f"{name} is {got}, expected an IMAGE: connect one, Load Image's for example")
    shape = tuple(images.shape)
    if images.ndim in (2, 3):
        raise ContextDiffusionError(
            f"{name} has the shape {shape} of a mask, expected an image (batch, height, width, 3): "
            f"connect an IMAGE to {name}, or put Convert Mask to Image between"
        )
    if images.ndim != 4 or shape[-1] not in (1, 3, 4):
        hint = "; its channels come second and not last" if images.ndim == 4 and shape[1] in (1, 3, 4) else ""
        raise ContextDiffusionError(
            f"{name} has the shape {shape}, expected an image (batch, height, width, 3){hint}: "
            f"connect an IMAGE with 1, 3 or 4 channels to {name}"
        )
    if 0 in shape:
        raise ContextDiffusionError(
            f"{name} has the shape {shape}, which is an empty batch or picture: connect at least one image to {name}"
        )
    low, high = (value.item() for value in torch.aminmax(images))  # NaN comes through
    if not (abs(low) < float("inf") and abs(high) < float("inf")):
        raise ContextDiffusionError(
            f"{name} holds NaN or infinite values, expected numbers in [0, 1]: look at the node that makes it "
            "(a VAE Decode in half precision is the usual one)"
        )
    if low < _LOWEST or high > _HIGHEST:
        raise ContextDiffusionError(
            f"{name} has values from {low:.4g} to {high:.4g}, expected [0, 1]: connect an image of that range to {name}"
        )
    if shape[-1] == 1:
        return images.expand(-1, -1, -1, 3)
    if shape[-1] == 4:
        alpha = images[..., 3:].clamp(0, 1)
        return images[..., :3] * alpha + (1 - alpha)
    return images


def check_conditioning(conditioning: object, name: str) -> None:
    """Refuse a conditioning with no entry: nothing to denoise by.

    Raises:
        ContextDiffusionError: otherwise.
    """
    if not isinstance(conditioning, list) or not conditioning:
        raise ContextDiffusionError(f"{name} holds no conditioning: connect CLIP Text Encode to {name}")


def check_text(conditioning: object, name: str) -> None:
    """Refuse a conditioning whose entries are no text: [[tokens (B, T, d), options], ...].

    Raises:
        ContextDiffusionError: otherwise.
    """
    check_conditioning(conditioning, name)
    for tokens, _ in conditioning:
        if not isinstance(tokens, Tensor) or tokens.ndim != 3:
            got = tuple(tokens.shape) if isinstance(tokens, Tensor) else type(tokens).__name__
            raise ContextDiffusionError(
                f"{name} holds {got}, expected text tokens (batch, tokens, width): "
                f"connect the CLIP Text Encode of an image model to {name}"
            )


def check_visual_context(visual_context: object) -> None:
    """Refuse a visual context without tokens.

    Raises:
        ContextDiffusionError: otherwise.
    """
    tokens = getattr(visual_context, "last_hidden_state", None)
    if not isinstance(tokens, Tensor) or tokens.ndim != 3 or 0 in tokens.shape:
        got = tuple(tokens.shape) if isinstance(tokens, Tensor) else type(tokens).__name__
        raise ContextDiffusionError(
            f"visual_context holds {got}, expected tokens (images, tokens, width): connect Encode Visual Context, "
            "Load Visual Context or CLIP Vision Encode to visual_context"
        )
