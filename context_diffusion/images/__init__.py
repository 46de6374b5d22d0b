"""Files and tensors. In the core an image is float32 (3, H, W) or (B, 3, H, W) in [0, 1]."""

from .check import check_images
from .fit import check_size, fit_image, parse_color
from .grid import image_grid
from .load import IMAGE_SUFFIXES, image_from_pil, list_images, load_image_as_tensor
from .save import check_image_path, save_image, to_pil
from .statistics import calculate_mean_std

__all__ = [
    "IMAGE_SUFFIXES",
    "calculate_mean_std",
    "check_image_path",
    "check_images",
    "check_size",
    "fit_image",
    "image_from_pil",
    "image_grid",
    "list_images",
    "load_image_as_tensor",
    "parse_color",
    "save_image",
    "to_pil",
]
