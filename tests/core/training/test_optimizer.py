"""Muon and AdamW against what they are defined by."""

import torch

from context_diffusion.training.run.optimizer import MuonAdamW, orthogonalize


def test_orthogonalize_keeps_singular_vectors_and_evens_out_values():
    torch.manual_seed(0)
    matrix = torch.randn(48, 20) @ torch.diag(torch.logspace(0, -1.5, 20))
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    result = orthogonalize(matrix)
    values = torch.linalg.svdvals(result)
    assert values.max() < 1.3 and values.min() > 0.6
    # u^T result v is diagonal when the singular vectors are the matrix's own.
    core = u.T @ result @ v.T
    assert (core - torch.diag(core.diag())).abs().max() < 1e-3


def test_vectors_are_updated_as_torch_adamw_does():
    torch.manual_seed(0)
    ours = torch.nn.Parameter(torch.randn(37))
    theirs = torch.nn.Parameter(ours.detach().clone())
    first = MuonAdamW([("norm.weight", ours)], lr=1e-2, betas=(0.9, 0.99))
    second = torch.optim.AdamW([theirs], lr=1e-2, betas=(0.9, 0.99), weight_decay=0.0)
    for _ in range(5):
        gradient = torch.randn(37)
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        first.step()
        second.step()
    assert torch.allclose(ours, theirs, atol=1e-6)


def test_a_convolution_moves_by_the_scaled_orthogonal_matrix():
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(32, 16, 3, 3))
    before = weight.detach().clone()
    weight.grad = torch.randn_like(weight)
    gradient = weight.grad.flatten(1)
    MuonAdamW([("conv.weight", weight)], lr=0.1, momentum=0.95).step()
    # The first look ahead is a multiple of the gradient, and the scale does not matter to the direction.
    expected = -0.1 * 0.2 * 144**0.5 * orthogonalize(gradient)
    assert torch.allclose((weight - before).flatten(1), expected, atol=1e-5)


def test_embeddings_and_small_layers_are_left_to_adamw():
    named = [
        ("text.token_embedding.weight", torch.nn.Parameter(torch.zeros(100, 32))),
        ("conv_in.weight", torch.nn.Parameter(torch.zeros(64, 8, 1, 1))),
        ("attn.to_q.weight", torch.nn.Parameter(torch.zeros(64, 64))),
        ("norm.bias", torch.nn.Parameter(torch.zeros(64))),
    ]
    groups = MuonAdamW(named, lr=1e-3).param_groups
    assert [[parameter.shape for parameter in group["params"]] for group in groups if group["muon"]] == [[(64, 64)]]
