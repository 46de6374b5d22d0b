"""Context Diffusion as a ComfyUI custom node pack: this folder is what ComfyUI loads.

The nodes come with a later release. Importing this must stay cheap: neither diffusers nor transformers here.
"""
