"""One file <-> one model.

Imports `model` and the ground.
"""
