"""The noise schedule of a model as a diffusers scheduler, and whether another scheduler fits it."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..errors import ContextDiffusionError
from ..model.context_diffusion import DEFAULT_SCHEDULE, PREDICTION_TYPES

if TYPE_CHECKING:
    from diffusers import SchedulerMixin


def make_scheduler(schedule: dict | None = None) -> SchedulerMixin:
    """The sampler a model runs with unless the user swaps it: `lcm` for rectified flow, DDIM otherwise.

    Args:
        schedule: as `ContextDiffusion.schedule`; entries left out are Stable Diffusion 1.5's.

    Returns:
        A FlowMatchEulerDiscreteScheduler (shift 1) with `stochastic_sampling`, which is `lcm` of
        `sampling.flow.FlowSampler`, or a DDIMScheduler (the paper samples with DDIM). With zero terminal SNR the
        steps must include the last timestep, so its spacing is `trailing` there.

    Raises:
        ContextDiffusionError: unknown prediction type.
    """
    from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler

    schedule = {**DEFAULT_SCHEDULE, **(schedule or {})}
    prediction_type = schedule["prediction_type"]
    if prediction_type not in PREDICTION_TYPES:
        raise ContextDiffusionError(
            f"prediction_type is {prediction_type!r}; choose one of {', '.join(PREDICTION_TYPES)}"
        )
    if prediction_type == "flow":
        return FlowMatchEulerDiscreteScheduler(
            num_train_timesteps=schedule["num_train_timesteps"], shift=1.0, stochastic_sampling=True
        )
    zero_snr = schedule["rescale_betas_zero_snr"]
    return DDIMScheduler(
        num_train_timesteps=schedule["num_train_timesteps"],
        beta_start=schedule["beta_start"],
        beta_end=schedule["beta_end"],
        beta_schedule=schedule["beta_schedule"],
        prediction_type=prediction_type,
        rescale_betas_zero_snr=zero_snr,
        timestep_spacing="trailing" if zero_snr else "leading",
        steps_offset=0 if zero_snr else 1,
        set_alpha_to_one=False,
        clip_sample=False,
    )


def prediction_type_of(scheduler: SchedulerMixin) -> str | None:
    """What a scheduler takes the UNet's output for: one of `PREDICTION_TYPES`, or None if it does not say."""
    if type(scheduler).__name__.startswith("FlowMatch"):
        return "flow"
    prediction_type = scheduler.config.get("prediction_type")
    return "flow" if prediction_type == "flow_prediction" else prediction_type


def check_scheduler(scheduler: SchedulerMixin, prediction_type: str) -> None:
    """Refuse a scheduler that reads the UNet's output as something else: it would sample noise in silence.

    Args:
        scheduler: any diffusers scheduler.
        prediction_type: what the model predicts.

    Raises:
        ContextDiffusionError: the two differ, or a flow scheduler runs on the sigmas of a diffusion.
    """
    name, got = type(scheduler).__name__, prediction_type_of(scheduler)
    flow = prediction_type == "flow"
    diffusion_sigmas = scheduler.config.get("use_flow_sigmas") is False
    if got in (None, prediction_type) and not (flow and diffusion_sigmas):
        return
    if flow and "use_flow_sigmas" not in scheduler.config:
        advice = "use a FlowMatch scheduler, or one that has use_flow_sigmas"
    else:
        options = "prediction_type='flow_prediction', use_flow_sigmas=True" if flow else f"{prediction_type=}"
        advice = f"make it with {name}.from_config(pipe.scheduler.config, {options})"
    raise ContextDiffusionError(
        f"{name} is set up for {got!r} but the model predicts {prediction_type!r} "
        f"{'(rectified flow)' if flow else '(diffusion)'}: {advice}"
    )


def set_timesteps(scheduler: SchedulerMixin, steps: int, device: torch.device, strength: float = 1.0) -> torch.Tensor:
    """Set up a scheduler for one run.

    Args:
        scheduler: the one to set up; its state is reset.
        steps: sampling steps of a whole run, >= 1.
        device: where the timesteps go.
        strength: share of the steps that run, in (0, 1]; below 1 for image-to-image. At least one step runs.

    Returns:
        The timesteps to run, (n,); a second-order scheduler has two a step.

    Raises:
        ContextDiffusionError: more steps than the schedule has.
    """
    trained = scheduler.config.get("num_train_timesteps")
    flow = prediction_type_of(scheduler) == "flow"
    if trained and steps > trained and not flow:
        raise ContextDiffusionError(f"num_inference_steps is {steps}, but the schedule has {trained}: ask for fewer")
    accepted = inspect.signature(scheduler.set_timesteps).parameters
    if type(scheduler).__name__ == "FlowMatchEulerDiscreteScheduler":
        # Left alone it steps down to sigma 0.001 and spends the last step on the rest: equal steps instead.
        scheduler.set_timesteps(sigmas=np.linspace(1.0, 1.0 / steps, steps).tolist(), device=device)
    elif "device" in accepted:
        scheduler.set_timesteps(steps, device=device)
    else:
        scheduler.set_timesteps(steps)
    # FlowMatchHeun keeps its place of the last run.
    if hasattr(scheduler, "_step_index"):
        scheduler._step_index = None
    first = (steps - min(steps, max(1, int(steps * strength)))) * scheduler.order
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(first)
    return scheduler.timesteps[first:]


def add_noise(
    scheduler: SchedulerMixin, latents: torch.Tensor, noise: torch.Tensor, timestep: torch.Tensor
) -> torch.Tensor:
    """z_t (B, C, h, w) of clean latents at the run's first timestep: flow interpolates, diffusion adds."""
    if hasattr(scheduler, "scale_noise"):
        return scheduler.scale_noise(latents, timestep.view(1), noise)
    return scheduler.add_noise(latents, noise, timestep.view(1).expand(latents.shape[0]))
