"""A model from data: settings, stages, episodes, what a run begins with, the loop.

Imports everything but `evaluation` and `cli`.
"""
