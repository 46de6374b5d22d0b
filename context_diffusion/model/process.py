"""The process of eq. 2: noise, what the model predicts of it, and the loss; for eps, v and rectified flow."""

from __future__ import annotations

import torch
from torch import Tensor

from .context_diffusion import ContextDiffusion


def add_noise(latents: Tensor, noise: Tensor, levels: Tensor, schedule: dict) -> tuple[Tensor, Tensor, Tensor]:
    """z_t, the target of eq. 2 and the UNet's timesteps.

    Args:
        latents: clean z (B, C, h, w).
        noise: eps, the same shape.
        levels: (B,) in (0, 1); for flow the noise level s itself, else the timestep's place in the schedule.
        schedule: the model's.

    Returns:
        z_t and target (B, C, h, w), timesteps (B,): floats 1000 s for flow, whole numbers otherwise.
    """
    kind = schedule["prediction_type"]
    steps = schedule["num_train_timesteps"]
    if kind == "flow":
        s = levels.view(-1, 1, 1, 1).to(latents)
        return (1 - s) * latents + s * noise, noise - latents, levels * steps
    timesteps = (levels * steps).long().clamp(0, steps - 1)
    alphas = alphas_cumprod(schedule).to(latents)[timesteps].view(-1, 1, 1, 1)
    signal, spread = alphas.sqrt(), (1 - alphas).sqrt()
    target = noise if kind == "epsilon" else signal * noise - spread * latents
    return signal * latents + spread * noise, target, timesteps


def alphas_cumprod(schedule: dict) -> Tensor:
    """Products of (1 - beta) of a schedule, (steps,)."""
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler(
        num_train_timesteps=schedule["num_train_timesteps"],
        beta_schedule=schedule["beta_schedule"],
        beta_start=schedule["beta_start"],
        beta_end=schedule["beta_end"],
        rescale_betas_zero_snr=schedule["rescale_betas_zero_snr"],
    )
    return scheduler.alphas_cumprod


def diffusion_loss(
    model: ContextDiffusion,
    latents: Tensor,
    y: Tensor,
    query: Tensor | None,
    noise: Tensor,
    levels: Tensor,
    layout_strength: float | Tensor = 1.0,
) -> Tensor:
    """E || target - f(z_t, t, y, q) ||^2 (eq. 2), one value a sample.

    Args:
        model: f.
        latents: clean z (B, C, h, w).
        y: [h^c, h^V] (B, 77 + N, d_c).
        query: q (B, 3, H, W) in [0, 1], or None.
        noise: eps, like `latents`.
        levels: (B,) in (0, 1), see `add_noise`.
        layout_strength: factor of the layout, a number or (B, 1, 1, 1); 0 for samples without a query.

    Returns:
        (B,) mean square errors.
    """
    z_t, target, timesteps = add_noise(latents, noise, levels, model.schedule)
    prediction = model.predict(z_t, timesteps, y, query, layout_strength)
    return torch.mean((prediction.float() - target).square(), dim=(1, 2, 3))
