"""The context projector in the form that diffusers' `save_pretrained` and `from_pretrained` know.

Only the pipeline needs it: `visual_context.ContextProjector` alone works without diffusers.
"""

from __future__ import annotations

from typing import TypeVar

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config

from .model.visual_context import ContextProjector

Projector = TypeVar("Projector", bound=ContextProjector)


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
        return projector if isinstance(projector, cls) else _sharing(cls, projector)

    def plain(self) -> ContextProjector:
        """The same projector as a bare `ContextProjector`; the two share their weights."""
        return _sharing(ContextProjector, self)


def _sharing(cls: type[Projector], projector: ContextProjector) -> Projector:
    with torch.device("meta"):  # no weights to make, no random numbers drawn
        shared = cls(projector.linear.in_features, projector.linear.out_features)
    shared.linear = projector.linear
    return shared.train(projector.training)
