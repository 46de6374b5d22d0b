"""How good a model is: cases, images, metrics, estimates, reports.

Imports everything but `cli`.
"""
