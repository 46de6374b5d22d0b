"""The three stages of a model, each what the loop asks of one.

Imports the other rooms of `training`.
"""
