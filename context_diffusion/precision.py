"""Matrix products and convolutions in bf16, everything else in fp32: the fast precision of a CPU with bf16 units."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


def multiply_in_bf16(module: nn.Module) -> None:
    """Let the linear and convolution layers under `module` multiply in bf16, forward and backward.

    Weights, activations between the layers, norms, attention and the loss stay fp32. Autocast over the whole model
    takes norms and attention along; on a CPU their bf16 kernels cost more time than the products save.

    Args:
        module: changed in place; its weights and their names stay what they are.
    """
    for layer in module.modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d)):
            layer.forward = _in_bf16(layer.forward)  # type: ignore[method-assign]


def _in_bf16(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def multiply(value: Tensor, *arguments: object) -> Tensor:
        with torch.autocast(value.device.type, torch.bfloat16):
            product = forward(value, *arguments)
        return product.float()

    return multiply
