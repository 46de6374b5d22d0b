"""Context Diffusion as a ComfyUI custom node pack: this folder is what ComfyUI loads."""

from .nodes import comfy_entrypoint

WEB_DIRECTORY = "./web"

__all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]
