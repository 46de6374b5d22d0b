"""Latents and images from a model: the diffusers pipeline and the plain sampler.

Imports `checkpoint`, `model`, `maps`, `images` and the ground.
"""
