"""The paper: f(z_t, t, y, q) and the encoders around it.

Imports errors alone of this package; torch, and diffusers only where a part is made.
"""
