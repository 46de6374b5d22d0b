"""In-context episodes: who is whose context, and the pool that keeps them ready.

Imports `data`, `maps`, `model`, training's settings and `run`.
"""
