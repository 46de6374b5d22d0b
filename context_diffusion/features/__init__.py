"""Networks of others that measure images or weigh a loss.

Imports the ground.
"""
