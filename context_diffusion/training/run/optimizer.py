"""AdamW with orthogonalised momentum for the weight matrices (Muon), which learns more from each sample.

A weight matrix's momentum is replaced by the nearest matrix whose singular values are all about 1, so that every
direction moves alike; the update is then scaled to the root mean square that AdamW's would have, and one learning
rate serves both. See K. Jordan et al., "Muon" (2024), and arXiv 2502.16982 for the scale. torch.optim.Muon takes
two-dimensional parameters only; most of a UNet's are convolutions.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn

# Coefficients of the odd polynomial that drives singular values towards 1 in few steps.
_QUINTIC = (3.4445, -4.7750, 2.0315)


class MuonAdamW(torch.optim.Optimizer):
    """Muon for matrices and convolutions, AdamW for everything else.

    Args:
        parameters: name and parameter. Muon takes those with two or more dimensions whose smaller side is at least
            16 and that are no embedding; biases, norms, first and last layers go to AdamW.
        lr: learning rate of both.
        betas: AdamW's; Muon's momentum is `momentum`.
        momentum: Muon's, with Nesterov's look ahead.
        weight_decay: decoupled, of matrices only.
        steps: Newton-Schulz steps.
        dtype: what they multiply in; bf16 is exact enough (the polynomial corrects itself) and on many CPUs faster.
    """

    def __init__(
        self,
        parameters: Iterable[tuple[str, nn.Parameter]],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.99),
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        steps: int = 5,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.dtype = dtype
        matrices, others = [], []
        for name, parameter in parameters:
            (matrices if _is_matrix(name, parameter) else others).append(parameter)
        groups = [{"params": matrices, "muon": True}, {"params": others, "muon": False}]
        groups = [group for group in groups if group["params"]]
        defaults = {"lr": lr, "betas": betas, "momentum": momentum, "weight_decay": weight_decay, "steps": steps}
        super().__init__(groups, defaults)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """One update from the parameters' gradients, which all processes of a run have averaged before."""
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if group["muon"]:
                self._muon(parameters, group)
            else:
                for parameter in parameters:
                    self._adamw(parameter, group)

    def _muon(self, parameters: list[nn.Parameter], group: dict) -> None:
        """The processes share out the orthogonalising, a good part of a step's time on CPUs, and sum the results."""
        world, rank = (dist.get_world_size(), dist.get_rank()) if dist.is_initialized() else (1, 0)
        updates = torch.zeros(sum(parameter.numel() for parameter in parameters))
        updates = updates.to(parameters[0]) if parameters else updates
        slices = updates.split([parameter.numel() for parameter in parameters])
        for index, (parameter, update) in enumerate(zip(parameters, slices, strict=True)):
            state = self.state[parameter]
            if not state:
                state["momentum"] = torch.zeros_like(parameter)
            state["momentum"].lerp_(parameter.grad, 1 - group["momentum"])
            if index % world == rank:
                ahead = parameter.grad.lerp(state["momentum"], group["momentum"]).flatten(1)
                update.copy_(orthogonalize(ahead, group["steps"], self.dtype).flatten())
                update.mul_(0.2 * max(ahead.shape) ** 0.5)
        if world > 1:
            dist.all_reduce(updates)
        for parameter, update in zip(parameters, slices, strict=True):
            if group["weight_decay"]:
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
            parameter.add_(update.view(parameter.shape), alpha=-group["lr"])

    def _adamw(self, parameter: nn.Parameter, group: dict) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros(())
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        state["step"] += 1
        count = float(state["step"])
        beta1, beta2 = group["betas"]
        state["exp_avg"].lerp_(parameter.grad, 1 - beta1)
        state["exp_avg_sq"].mul_(beta2).addcmul_(parameter.grad, parameter.grad, value=1 - beta2)
        scale = (state["exp_avg_sq"] / (1 - beta2**count)).sqrt_().add_(1e-8)
        parameter.addcdiv_(state["exp_avg"], scale, value=-group["lr"] / (1 - beta1**count))


def orthogonalize(matrix: Tensor, steps: int = 5, dtype: torch.dtype = torch.float32) -> Tensor:
    """The matrix with its singular values brought near 1 (Newton-Schulz).

    Args:
        matrix: (m, n).
        steps: iterations; five give values between about 0.7 and 1.2.
        dtype: what they multiply in.

    Returns:
        (m, n), of that dtype.
    """
    a, b, c = _QUINTIC
    wide = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = (wide / (wide.norm() + 1e-7)).to(dtype)
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if matrix.shape[0] > matrix.shape[1] else x


def _is_matrix(name: str, parameter: Tensor) -> bool:
    if parameter.ndim < 2 or "embedding" in name.split(".")[-2:][0]:
        return False
    return min(parameter.shape[0], parameter[0].numel()) >= 16
