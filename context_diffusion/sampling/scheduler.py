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

# diffusers' schedulers whose exact predictions lead to the clean latents: for a flow, for a diffusion, and for either
# (for a flow with `use_flow_sigmas`).
_FLOW = (
    "FlowMatchEulerDiscreteScheduler",
    "FlowMatchHeunDiscreteScheduler",
    "FlowMatchLCMScheduler",
    "FlowMapEulerDiscreteScheduler",
)
_DIFFUSION = (
    "DDIMScheduler",
    "DDIMParallelScheduler",
    "DDPMScheduler",
    "DDPMParallelScheduler",
    "DEISMultistepScheduler",
    "DPMSolverSDEScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "LCMScheduler",
    "LMSDiscreteScheduler",
    "PNDMScheduler",
    "SASolverScheduler",
    "TCDScheduler",
)
_BOTH = ("DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler", "UniPCMultistepScheduler")


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


def check_scheduler(scheduler: SchedulerMixin, prediction_type: str | None) -> None:
    """Refuse a scheduler that fits in nothing here, or reads the UNet's output as something else.

    Others have steps of another kind (consistency, inversion, video, tokens), sigmas of their own, or such that stop
    short of 0: they would sample noise in silence.

    Args:
        scheduler: any diffusers scheduler.
        prediction_type: what the model predicts; None for a model that does not say.

    Raises:
        ContextDiffusionError: it is none of those that fit, nor made of one, or it is set up for something else.
    """
    name, flow = type(scheduler).__name__, prediction_type == "flow"
    fitting = _BOTH if flow else (*_DIFFUSION, *_BOTH)
    if flow or prediction_type is None:
        fitting = (*_FLOW, *fitting)
    if not _is_one_of(scheduler, fitting):
        kind = f"predicts {prediction_type!r}" if prediction_type else "does not say what it predicts"
        raise ContextDiffusionError(f"{name} fits no model that {kind}: use {', '.join(fitting[:-1])} or {fitting[-1]}")
    if _is_one_of(scheduler, _FLOW):
        return
    # A run that begins in the middle would miss the first steps of PNDM's kind.
    wanted = {"skip_prk_steps": True}
    if prediction_type is not None:
        wanted |= {"prediction_type": "flow_prediction" if flow else prediction_type, "use_flow_sigmas": flow}
    wrong = {option: value for option, value in wanted.items() if scheduler.config.get(option, value) != value}
    if wrong:
        got, settings = (
            ", ".join(f"{option}={settings[option]!r}" for option in wrong) for settings in (scheduler.config, wanted)
        )
        raise ContextDiffusionError(
            f"{name} has {got}, which does not fit a model that predicts {prediction_type!r}: "
            f"make it with {name}.from_config(pipe.scheduler.config, {settings})"
        )


def _is_one_of(scheduler: SchedulerMixin, names: tuple[str, ...]) -> bool:
    return any(each.__name__ in names for each in type(scheduler).__mro__)


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
    flow = _is_one_of(scheduler, _FLOW) or scheduler.config.get("use_flow_sigmas")
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
