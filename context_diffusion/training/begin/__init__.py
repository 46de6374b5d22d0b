"""What a run begins with: new, grown or averaged models.

Imports `checkpoint`, `model`, `pretrained` and training's settings.
"""
