"""What a model does in another way than the default: the ablations that a checkpoint has to know of itself.

Two more show in the parts alone: a layout encoder that is a T2I adapter (`layout.py`), and the example encoder of the
Prompt Diffusion baseline (`prompt_diffusion.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from ..choices import AGGREGATIONS
from ..errors import ContextDiffusionError
from .visual_context import HIDDEN_STATES

CROSS_ATTENTIONS = ("concatenated", "decoupled")
NULL_CONTEXTS = ("zeros", "black")

_CHOICES = {
    "aggregation": AGGREGATIONS,
    "cross_attention": CROSS_ATTENTIONS,
    "context_hidden_state": HIDDEN_STATES,
    "null_context": NULL_CONTEXTS,
}


@dataclass(frozen=True)
class Variant:
    """How a model joins, reads and leaves out its visual context. The defaults are those of every model before.

    Attributes:
        aggregation: how k context images are joined, in training and unless a sampler is told otherwise: `mean`,
            `sum` or `concat`.
        cross_attention: `concatenated` reads K, V from [h^c, h^V]; `decoupled` has K, V of its own for h^V, see
            `decoupled.py`.
        context_hidden_state: which of the image encoder's hidden states is h^V before the projector, `last` or
            `penultimate`.
        null_context: what stands for no context: `zeros` after the projector, or a `black` image through encoder
            and projector.

    Raises:
        ContextDiffusionError: a value that is not one of these.
    """

    aggregation: str = "mean"
    cross_attention: str = "concatenated"
    context_hidden_state: str = "last"
    null_context: str = "zeros"

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ContextDiffusionError(f"{name} is {getattr(self, name)!r}; choose one of {', '.join(choices)}")

    @classmethod
    def of(cls, table: Any) -> Variant:
        """A variant from what `changes` gave.

        Raises:
            ContextDiffusionError: no table, or an entry that this release does not know.
        """
        if not isinstance(table, Mapping):
            raise ContextDiffusionError(f"the variant is {table!r}, not a table of settings")
        unknown = sorted(set(table) - set(_CHOICES))
        if unknown:
            raise ContextDiffusionError(f"the variant has entries unknown here: {', '.join(unknown)}")
        return cls(**table)

    def changes(self) -> dict[str, str]:
        """The entries that are not the default's; empty for the default."""
        default = Variant()
        return {
            item.name: value
            for item, value in zip(fields(self), asdict(self).values(), strict=True)
            if value != getattr(default, item.name)
        }

    def native_limits(self) -> Iterator[str]:
        """What keeps such a model from running as native ComfyUI objects, one line each.

        The aggregation is no limit: the encoding node has it as a setting.
        """
        if self.cross_attention != "concatenated":
            yield f"cross_attention is {self.cross_attention!r}, must be 'concatenated'"
        if self.context_hidden_state != "last":
            yield f"context_hidden_state is {self.context_hidden_state!r}, must be 'last'"
        if self.null_context != "zeros":
            yield f"null_context is {self.null_context!r}, must be 'zeros'"
