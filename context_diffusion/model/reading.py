"""How a model reads its visual context: steps without weights, each of which another can take the place of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from ..choices import AGGREGATIONS
from ..errors import ContextDiffusionError
from .visual_context import image_tokens, null_context

if TYPE_CHECKING:
    from .context_diffusion import ContextDiffusion

# Behind what a file asks for and nothing here knows.
RESEARCH = "`python -m research COMMAND` for `context-diffusion COMMAND` reads models of the repository's research/"


def _zeros(model: ContextDiffusion, n_tokens: int, like: Tensor) -> Tensor:
    return null_context(1, n_tokens, model.unet.config.cross_attention_dim, like)


def _concatenated(y: Tensor, context_tokens: int | None) -> Tensor:
    return y


def _any_network(network: nn.Module) -> None:
    pass


@dataclass(frozen=True)
class Reading:
    """The steps between the image encoder and the networks' cross-attention.

    Attributes:
        aggregation: how k context images are joined, in training and unless a sampler is told otherwise.
        image_tokens: (image encoder, its pixels (B, 3, S, S)) -> the tokens of each image, (B, N, d_v).
        null_context: (model, N, a tensor of the device and dtype) -> what stands for no context, (1, N, d_c).
        attended: (y, how many of its tokens are h^V) -> what the cross-attentions read.
        prepare: makes a fresh UNet or layout encoder one whose cross-attentions read that.
        check: refuses a UNet whose cross-attentions do not.
        changes: setting -> value, what of it is not the default's: the table `variant` of a checkpoint.
    """

    aggregation: str = "mean"
    image_tokens: Callable[[nn.Module, Tensor], Tensor] = image_tokens
    null_context: Callable[[ContextDiffusion, int, Tensor], Tensor] = _zeros
    attended: Callable[[Tensor, int | None], Any] = _concatenated
    prepare: Callable[[nn.Module], None] = _any_network
    check: Callable[[nn.Module], None] = _any_network
    changes: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, table: Any) -> Reading:
        """A reading by its `changes`, or by any settings and values of those that `register_reading` was told.

        Raises:
            ContextDiffusionError: no table, or a setting or a value that nothing here knows.
        """
        if not isinstance(table, Mapping):
            raise ContextDiffusionError(f"the variant is {table!r}, not a table of settings")
        unknown = sorted(set(table) - set(_KNOWN))
        if unknown:
            raise ContextDiffusionError(f"the variant has entries unknown here: {', '.join(unknown)}; {RESEARCH}")
        steps: dict[str, Any] = {}
        for name, value in table.items():
            values = _KNOWN[name]
            if not isinstance(value, str) or value not in values:
                raise ContextDiffusionError(f"{name} is {value!r}; choose one of {', '.join(values)}")
            steps |= values[value]
        default = {name: next(iter(values)) for name, values in _KNOWN.items()}
        return cls(**steps, changes={name: value for name, value in table.items() if value != default[name]})


_KNOWN: dict[str, dict[str, dict[str, Any]]] = {"aggregation": {name: {"aggregation": name} for name in AGGREGATIONS}}


def register_reading(name: str, values: dict[str, dict[str, Any]]) -> None:
    """Make a setting known, to checkpoints and to pipeline folders.

    Args:
        name: of the setting.
        values: each of its values, the default first -> the entries of `Reading` that it replaces.
    """
    _KNOWN[name] = values
