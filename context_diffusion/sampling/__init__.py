"""Latents and images from a model: the diffusers pipeline and the plain sampler.

Imports `checkpoint`, `projector`, `model`, `maps`, `images`, `pretrained` and the ground.
"""
