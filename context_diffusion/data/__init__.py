"""Data sets of styles on disk and in memory.

Imports `images`, `maps` and the ground.
"""
