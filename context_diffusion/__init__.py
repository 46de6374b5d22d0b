"""Context Diffusion: images from visual context, a query image and a prompt (arXiv 2312.03584).

Importing the package costs next to nothing: what needs diffusers or transformers is loaded on first use.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    # Where its constructor from Stable Diffusion is given to it.
    "ContextDiffusion": "checkpoint.import_stable_diffusion",
    "ContextDiffusionError": "errors",
    "ContextDiffusionPipeline": "sampling.pipeline",
    "calculate_mean_std": "images",
    "load_image_as_tensor": "images",
    "load_checkpoint": "checkpoint.read",
    "make_map": "maps",
    "pick_device": "devices",
    "pick_dtype": "devices",
    "save_checkpoint": "checkpoint.write",
}

__all__ = [*_HOMES, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
