"""Linear probes against what they should find, and against the minimum of their loss."""

import numpy as np
import pytest
import torch

from context_diffusion.errors import ContextDiffusionError
from context_diffusion.evaluation.probes import fit_probe


def test_a_probe_finds_what_is_linear_and_no_more():
    rng = np.random.default_rng(0)
    rows = torch.tensor(rng.normal(size=(400, 10)), dtype=torch.float32)
    labels = ["red" if row[0] + row[1] > 0 else "blue" for row in rows]
    noise = [str(label) for label in rng.choice(["red", "blue"], size=400)]
    probe = fit_probe(rows[:300], labels[:300])
    assert probe.classes == ("blue", "red")
    assert probe.correct(rows[300:], labels[300:]).mean() > 0.95
    assert 0.3 < fit_probe(rows[:300], noise[:300]).correct(rows[300:], noise[300:]).mean() < 0.7
    with pytest.raises(ContextDiffusionError, match="1 class"):
        fit_probe(rows, ["red"] * 400)


def test_a_probe_is_at_the_minimum_of_its_loss():
    rng = np.random.default_rng(1)
    rows, labels = torch.tensor(rng.normal(size=(90, 4)), dtype=torch.float32), list("abc") * 30
    probe = fit_probe(rows, labels, penalties=(0.01,))
    weight, bias = probe.weight.double().requires_grad_(), probe.bias.double().requires_grad_()
    z = ((rows - probe.mean) / probe.scale).double() @ weight.T + bias
    chosen = z[torch.arange(90), torch.tensor([probe.classes.index(label) for label in labels])]
    loss = (z.exp().sum(1).log() - chosen).mean() + 0.005 * weight.square().sum()
    loss.backward()
    assert weight.grad.abs().max() < 1e-3 and bias.grad.abs().max() < 1e-3
