"""Which images the two protocols ask for, with which context, query and prompt.

Imports `data`, `maps` and the ground; of its neighbours nothing.
"""
