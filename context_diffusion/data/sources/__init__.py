"""Where pictures come from: pinned packages and what renders them.

Imports `data.index`, `data.captions` and the ground.
"""
