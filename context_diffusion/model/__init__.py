"""The paper: f(z_t, t, y, q) and the encoders around it.

Of this package it imports `errors`, `choices` and `ranges` alone; torch, and diffusers only where a part is made.
"""
