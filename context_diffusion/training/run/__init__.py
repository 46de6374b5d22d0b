"""The loop and what it needs: optimizer, state, lock, placement, sample grids.

Imports no stage.
"""
