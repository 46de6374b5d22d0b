"""What a run begins with: new, grown or averaged models.

Imports `checkpoint` and `model`.
"""
