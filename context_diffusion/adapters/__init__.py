"""IP-Adapter files (arXiv 2308.06721), the visual context of the models that people have: what a file is, its parts.

A file has a projection, from an image encoder's features to a few tokens, and keys and values of their own for these
tokens in every cross-attention of a UNet. Imports `checkpoint` for reading files, and torch; knows no UNet's code.
"""
