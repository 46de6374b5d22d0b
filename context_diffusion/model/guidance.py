"""One-, two- and three-branch classifier-free guidance over text and visual context.

With null (0), context (V) and text (c), and the query in every branch:

    e = e(0, 0) + g_ctx [e(0, V) - e(0, 0)] + g_txt [e(c, V) - e(0, V)]

which is one weighted sum of the branches, the weights adding up to 1:

    e = g_txt e(c, V) + (g_ctx - g_txt) e(0, V) + (1 - g_ctx) e(0, 0)

With g_ctx = g_txt the middle branch has weight 0 and two branches are enough.
"""

from __future__ import annotations

from functools import reduce
from operator import add

from torch import Tensor

FULL, CONTEXT_ONLY, NULL = "full", "context_only", "null"


def branch_weights(
    text_guidance: float, context_guidance: float, has_text: bool = True, has_context: bool = True
) -> dict[str, float]:
    """The branches that the UNet must run, each with its weight in the guided prediction.

    A branch that equals another is merged into it (no context: (0, V) is the null branch; no text: (c, V) is
    (0, V)), and a branch of weight 0 is left out. Their order is the order of rows in the UNet's batch.

    Args:
        text_guidance: g_txt; 1 means no guidance by text.
        context_guidance: g_ctx; 1 means no guidance by context.
        has_text: whether a prompt, or a negative prompt, makes (c, V) differ from (0, V).
        has_context: whether a visual context makes (0, V) differ from (0, 0).

    Returns:
        `full` (c, V), `context_only` (0, V) and `null` (0, 0), those that are needed; the weights add up to 1.
    """
    if not has_context:
        context_guidance = text_guidance
    if not has_text:
        text_guidance = context_guidance
    weights = {
        FULL: text_guidance,
        CONTEXT_ONLY: context_guidance - text_guidance,
        NULL: 1.0 - context_guidance,
    }
    return {name: weight for name, weight in weights.items() if weight != 0.0} or {FULL: 1.0}


def guide(predictions: dict[str, Tensor], weights: dict[str, float]) -> Tensor:
    """The guided prediction, of eps, v or velocity alike: guidance is linear in each.

    Args:
        predictions: branch name -> prediction, all of one shape.
        weights: branch name -> weight, from `branch_weights`.

    Returns:
        The weighted sum, of the same shape.
    """
    terms = [predictions[name] if weight == 1.0 else predictions[name] * weight for name, weight in weights.items()]
    return reduce(add, terms)
