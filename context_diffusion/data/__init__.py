"""Data sets of styles on disk and in memory.

Imports `images` and the ground.
"""
