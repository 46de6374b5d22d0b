"""Files and tensors. In the core an image is float32 (3, H, W) or (B, 3, H, W) in [0, 1]."""

from .check import check_images

__all__ = ["check_images"]
