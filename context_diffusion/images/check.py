"""What an image tensor must be before anything else touches it."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import ContextDiffusionError

# Resizing filters and half precision overshoot by a little; that much is clipped silently, more is a mistake.
_TOLERANCE = 1e-2


def check_images(images: Tensor, name: str = "images") -> Tensor:
    """Bring one image or a batch to the one form the core uses, or say in one line what is wrong with it.

    Args:
        images: (3, H, W) or (B, 3, H, W), floating point, in [0, 1] (an overshoot of 0.01 is clipped).
        name: what to call the tensor in messages.

    Returns:
        (B, 3, H, W) in [0, 1], in the given dtype and on the given device.

    Raises:
        ContextDiffusionError: not a floating-point tensor, wrong number of dimensions or channels, an
            empty batch or picture, NaN or infinite values, or values outside [0, 1].
    """
    if not isinstance(images, Tensor):
        raise ContextDiffusionError(
            f"{name}: got {type(images).__name__}, expected a tensor (B, 3, H, W); convert it with "
            "image_from_pil or load_image_as_tensor"
        )
    shape = tuple(images.shape)
    if not images.is_floating_point():
        raise ContextDiffusionError(
            f"{name}: dtype is {images.dtype}, expected floating point in [0, 1]; divide 8-bit values by 255"
        )
    if images.ndim == 3:
        images = images.unsqueeze(0)
    if images.ndim != 4:
        raise ContextDiffusionError(f"{name}: shape is {shape}, expected (3, H, W) or (B, 3, H, W)")
    if images.shape[1] != 3:
        hint = "channels come last here: permute to (B, 3, H, W)" if shape[-1] == 3 else "convert to RGB"
        raise ContextDiffusionError(f"{name}: shape is {shape} with {images.shape[1]} channels, expected 3; {hint}")
    if images.numel() == 0:
        raise ContextDiffusionError(f"{name}: shape is {shape}, which is empty; give at least one image")
    low, high = (value.item() for value in torch.aminmax(images.detach()))
    # aminmax propagates NaN, so that these two numbers tell everything.
    if not (abs(low) < float("inf") and abs(high) < float("inf")):
        raise ContextDiffusionError(f"{name}: holds NaN or infinite values; expected finite values in [0, 1]")
    if low < -_TOLERANCE or high > 1 + _TOLERANCE:
        if low < 0 and high <= 1 + _TOLERANCE:
            hint = "from [-1, 1] convert with (x + 1) / 2"
        else:
            hint = "divide 8-bit values by 255, or clip"
        raise ContextDiffusionError(f"{name}: values reach from {low:.4g} to {high:.4g}, expected [0, 1]; {hint}")
    return images.clamp(0, 1) if low < 0 or high > 1 else images
