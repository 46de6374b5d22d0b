"""Training a low-rank change of a UNet's attention instead of its weights: light, and a small file for any host.

The projector cannot be in it, since a host's LoRA loader reaches MODEL and CLIP alone; what of the context a style
needs, the keys and values of the cross-attention learn.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ...checkpoint.lora import lora_names
from ...model.context_diffusion import ContextDiffusion


class LowRank(nn.Module):
    """W -> W + up @ down, which begins as W.

    Args:
        weight: (out, in), or a 1 x 1 convolution's (out, in, 1, 1).
        rank: r.
    """

    def __init__(self, weight: Tensor, rank: int) -> None:
        super().__init__()
        out, width = weight.flatten(1).shape
        self.up = nn.Parameter(torch.zeros(out, rank))
        self.down = nn.Parameter(torch.randn(rank, width) / width**0.5)

    def forward(self, weight: Tensor) -> Tensor:
        return weight + (self.up @ self.down).view(weight.shape)


def add_lora(model: ContextDiffusion, rank: int) -> dict[str, LowRank]:
    """Freeze a model but for a low-rank change of each linear layer and 1 x 1 convolution in the UNet's transformers.

    Args:
        model: changed in place.
        rank: r of every layer.

    Returns:
        Layer in kohya's names -> its change.
    """
    model.requires_grad_(False)
    names = {id(weight): name for name, weight in lora_names(model).items()}
    changes = {}
    for name, layer in list(model.unet.named_modules()):
        pointwise = isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1))
        if ".attentions." in name and pointwise:
            change = changes[names[id(layer.weight)]] = LowRank(layer.weight, rank)
            parametrize.register_parametrization(layer, "weight", change)
    return changes
