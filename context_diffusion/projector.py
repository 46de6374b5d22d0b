"""The context projector in the form that diffusers' `save_pretrained` and `from_pretrained` know.

Only the pipeline needs it: `visual_context.ContextProjector` alone works without diffusers.
"""

from __future__ import annotations

from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config

from .visual_context import ContextProjector


class PretrainedContextProjector(ContextProjector, ModelMixin, ConfigMixin):
    """A `ContextProjector` that is a diffusers model too.

    Args:
        vision_width: d_v.
        text_width: d_c.
    """

    @register_to_config
    def __init__(self, vision_width: int, text_width: int) -> None:
        super().__init__(vision_width, text_width)

    @classmethod
    def of(cls, projector: ContextProjector) -> PretrainedContextProjector:
        """The same projector as a diffusers model; the two share their weights."""
        if isinstance(projector, cls):
            return projector
        shared = cls(projector.linear.in_features, projector.linear.out_features)
        shared.linear = projector.linear
        return shared.train(projector.training)
