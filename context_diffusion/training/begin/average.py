"""The average of several trained models: one model, no slower than one, that is often nearer than each of them.

Runs that go on from one checkpoint, or the rounds of one run, end in one valley of the loss; the mean of their weights
lies deeper in it (model soups, arXiv 2203.05482). Models that were trained from different beginnings do not average.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from ...checkpoint.parts import describe_part, present_parts
from ...checkpoint.tokenizer import tokenizer_to_json
from ...errors import ContextDiffusionError
from ...model.context_diffusion import ContextDiffusion
from ...ranges import number
from .vae import same_latents


@torch.no_grad()
def average_models(models: Sequence[ContextDiffusion], weights: Sequence[float] | None = None) -> ContextDiffusion:
    """Every weight the mean of the models', but the autoencoder's, which is the first model's.

    Args:
        models: two or more with the same parts, schedule and latents; the first is changed in place and returned.
        weights: one a model, not negative; they are divided by their sum. None: all count the same.

    Returns:
        The first model, its parts in their own dtypes; means are taken in fp32.

    Raises:
        ContextDiffusionError: fewer than two models, weights that are not one a model, negative or all zero, or models
            that differ in more than their weights.
    """
    if len(models) < 2:
        raise ContextDiffusionError(f"an average is of two models or more, got {len(models)}")
    shares = _shares(len(models), weights)
    first = models[0]
    for place, model in enumerate(models[1:], start=2):
        _check_alike(first, model, place)
    for name, part in present_parts(first).items():
        if name == "vae":
            continue
        states = [present_parts(model)[name].state_dict() for model in models]
        for key, value in part.state_dict().items():
            if value.is_floating_point():
                mean = sum(share * state[key].float() for share, state in zip(shares, states, strict=True))
                value.copy_(mean)
    return first


@torch.no_grad()
def replace_vae(model: ContextDiffusion, vae: nn.Module) -> None:
    """Give a model another decoder: `vae` must make the model's own latents.

    Raises:
        ContextDiffusionError: the model has no autoencoder, or `vae` has another encoder or scaling factor.
    """
    if model.vae is None or not same_latents(model.vae, vae):
        raise ContextDiffusionError(
            "the other autoencoder makes other latents than the model was trained on: give one whose decoder alone was "
            "trained on from the model's own ([vae] train_encoder = false)"
        )
    model.vae = vae.to(next(model.vae.parameters()).dtype).eval().requires_grad_(False)


def _shares(count: int, weights: Sequence[float] | None) -> list[float]:
    weights = [1.0] * count if weights is None else list(weights)
    if len(weights) != count:
        raise ContextDiffusionError(f"got {len(weights)} weights for {count} models: give one a model")
    if not all(weight in number(0) for weight in weights) or not sum(weights):
        raise ContextDiffusionError(f"the weights are {weights}: give numbers from 0 on, not all of them 0")
    return [weight / sum(weights) for weight in weights]


def _check_alike(first: ContextDiffusion, other: ContextDiffusion, place: int) -> None:
    parts, others = present_parts(first), present_parts(other)
    differing = [name for name in {**parts, **others} if name not in parts or name not in others]
    differing += [
        name
        for name, part in parts.items()
        if name in others and name != "vae" and describe_part(name, part) != describe_part(name, others[name])
    ]
    if "vae" in parts and "vae" in others and not same_latents(parts["vae"], others["vae"]):
        differing.append("latents")
    if (first.tokenizer is None) != (other.tokenizer is None) or (
        first.tokenizer is not None and tokenizer_to_json(first.tokenizer) != tokenizer_to_json(other.tokenizer)
    ):
        differing.append("tokenizer")
    differing += [name for name in ("schedule", "reading") if getattr(first, name) != getattr(other, name)]
    if differing:
        raise ContextDiffusionError(
            f"model {place} differs from model 1 in {', '.join(differing)}: average models that were trained on from "
            "one checkpoint"
        )
