"""Products in bf16: what they change and what they leave alone."""

import pytest
import torch
from torch import nn

from context_diffusion.precision import multiply_in_bf16
from context_diffusion.training.run.optimizer import orthogonalize


class Block(nn.Module):
    """A convolution, a norm and a linear layer that note what they were given."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.linear = nn.Conv2d(4, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.Linear(8, 8)

    def forward(self, images):
        self.seen = [self.conv(images)]
        self.seen.append(self.norm(self.seen[-1]))
        self.seen.append(self.linear(self.seen[-1].mean((2, 3))))
        return self.seen[-1].square().mean()


def rounded(tensor):
    return tensor.to(torch.bfloat16).float()


def test_factors_are_rounded_to_bf16_and_the_rest_stays_fp32():
    torch.manual_seed(0)
    block, images = Block(), torch.randn(2, 4, 6, 6)
    names = list(block.state_dict())
    multiply_in_bf16(block)
    block(images).backward()
    conv, norm, linear = block.seen
    assert {value.dtype for value in block.seen} == {torch.float32}
    # By hand: fp32 products of factors rounded to bf16, and a result rounded once more.
    by_hand = nn.functional.conv2d(rounded(images), rounded(block.conv.weight), rounded(block.conv.bias), padding=1)
    torch.testing.assert_close(conv, by_hand, rtol=1e-2, atol=1e-2)
    assert torch.equal(conv, rounded(conv)) and torch.equal(linear, rounded(linear))
    # The norm computes in fp32: its result is no bf16 value.
    torch.testing.assert_close(norm, nn.functional.group_norm(conv, 2, block.norm.weight, block.norm.bias))
    assert not torch.equal(norm, rounded(norm))
    assert list(block.state_dict()) == names
    assert all(value.dtype == torch.float32 and value.grad.dtype == torch.float32 for value in block.parameters())


def test_gradients_are_those_of_fp32_but_for_rounding():
    torch.manual_seed(0)
    exact, images = Block(), torch.randn(2, 4, 6, 6)
    fast = Block()
    fast.load_state_dict(exact.state_dict())
    multiply_in_bf16(fast)
    exact(images).backward()
    fast(images).backward()
    for one, other in zip(exact.parameters(), fast.parameters(), strict=True):
        error = (one.grad - other.grad).norm() / one.grad.norm()
        assert error < 0.05
    assert any(not torch.equal(a.grad, b.grad) for a, b in zip(exact.parameters(), fast.parameters(), strict=True))


@pytest.mark.parametrize("shape", [(48, 20), (20, 48)])
def test_newton_schulz_in_bf16_evens_out_singular_values_too(shape):
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonalize(torch.randn(shape), dtype=torch.bfloat16).float())
    assert values.max() < 1.3 and values.min() > 0.6
