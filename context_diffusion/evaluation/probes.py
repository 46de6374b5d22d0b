"""Linear probes: what can be read from frozen features by one linear layer (style, dominant color)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from ..errors import ContextDiffusionError


@dataclass(frozen=True)
class LinearProbe:
    """A multinomial logistic classifier on standardised features.

    Attributes:
        classes: names, in the order of the logits.
        mean: (d,) of the features that it was fitted on.
        scale: (d,) their standard deviation.
        weight: (C, d).
        bias: (C,).
    """

    classes: tuple[str, ...]
    mean: Tensor
    scale: Tensor
    weight: Tensor
    bias: Tensor

    def correct(self, features: Tensor, labels: Sequence[str]) -> Tensor:
        """1 where the most likely class of a row of (n, d) is its label, else 0: (n,) float64, the accuracy's rows."""
        logits = ((features - self.mean) / self.scale) @ self.weight.T + self.bias
        hits = [self.classes[row] == label for row, label in zip(logits.argmax(1).tolist(), labels, strict=True)]
        return torch.tensor(hits, dtype=torch.float64)


def fit_probe(
    features: Tensor,
    labels: Sequence[str],
    groups: Sequence[str] | None = None,
    penalties: Sequence[float] = (1e-3, 1e-2, 1e-1),
    seed: int = 0,
) -> LinearProbe:
    """Fit a linear probe; the L2 penalty is the one that does best on a fifth of the groups held back.

    Args:
        features: (n, d).
        labels: the class of each row.
        groups: rows of one group (a codepoint) are held back together; None makes each row a group.
        penalties: candidates, each times half the squared norm of the weights, added to the mean
            cross-entropy.
        seed: of the split.

    Raises:
        ContextDiffusionError: fewer than two classes, or counts that do not fit.
    """
    if len(features) != len(labels):
        raise ContextDiffusionError(f"{len(features)} features and {len(labels)} labels: one label for each row")
    classes = tuple(sorted(set(labels)))
    if len(classes) < 2:
        raise ContextDiffusionError(f"labels hold {len(classes)} class: a probe needs at least 2")
    features = features.float()
    position = {name: index for index, name in enumerate(classes)}
    target = torch.tensor([position[label] for label in labels])
    mean = features.mean(0)
    scale = features.std(0, correction=0).clamp_min(1e-6)
    rows = (features - mean) / scale
    best = penalties[0]
    if len(penalties) > 1:
        groups = list(groups) if groups is not None else [str(row) for row in range(len(rows))]
        names = sorted(set(groups))
        order = torch.randperm(len(names), generator=torch.Generator().manual_seed(seed)).tolist()
        back = {names[index] for index in order[: max(1, len(names) // 5)]}
        held = torch.tensor([group in back for group in groups])
        scores = []
        for penalty in penalties:
            weight, bias = _fit_logistic(rows[~held], target[~held], len(classes), penalty)
            scores.append(functional.cross_entropy(rows[held] @ weight.T + bias, target[held]).item())
        best = penalties[scores.index(min(scores))]
    weight, bias = _fit_logistic(rows, target, len(classes), best)
    return LinearProbe(classes, mean, scale, weight, bias)


def _fit_logistic(rows: Tensor, target: Tensor, n_classes: int, penalty: float) -> tuple[Tensor, Tensor]:
    """L-BFGS from zeros: deterministic, and the problem is convex."""
    weight = torch.zeros(n_classes, rows.shape[1], requires_grad=True)
    bias = torch.zeros(n_classes, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = functional.cross_entropy(rows @ weight.T + bias, target) + penalty / 2 * weight.square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)
    return weight.detach(), bias.detach()
