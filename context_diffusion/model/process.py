"""The process of eq. 2: noise, what the model predicts of it, the loss, one step back; eps, v and rectified flow."""

from __future__ import annotations

import torch
from torch import Tensor

from .context_diffusion import ContextDiffusion


def mixed(clean: Tensor, noise: Tensor, s: float | Tensor) -> Tensor:
    """z_s = (1 - s) x + s eps: rectified flow, straight from an image x at s = 0 to noise eps at s = 1."""
    return (1 - s) * clean + s * noise


def flow_step(z: Tensor, velocity: Tensor, s: float, s_next: float, noise: Tensor | None = None) -> Tensor:
    """One step of a rectified flow: z_s and v = eps - x -> z_s' = (1 - s') x + s' eps.

    Both of x = z_s - s v and eps = z_s + (1 - s) v are in z_s, and with them the step is one along v (`euler`). What
    one step got wrong in x, uneven fills first of all, it hands to the next as if it were in the image; new noise in
    the place of eps covers it (`lcm`).

    Args:
        z: z_s, (B, C, h, w).
        velocity: v, the guided prediction, likewise.
        s: noise level, in (0, 1].
        s_next: s', below it.
        noise: in the place of eps; None for the eps in z_s.
    """
    return mixed(z - s * velocity, z + (1 - s) * velocity if noise is None else noise, s_next)


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
        return mixed(latents, noise, s), noise - latents, levels * steps
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
