"""All that knows ComfyUI's internals: our checkpoints as its own objects, and the guider.

Imports `checkpoint` and `model` of the core, and of ComfyUI what it likes; no node.
"""
