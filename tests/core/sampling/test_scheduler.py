"""Schedulers with an oracle in the UNet's place: whatever the steps, the clean latents must come out."""

import diffusers
import pytest
import torch

from context_diffusion.errors import ContextDiffusionError
from context_diffusion.sampling.scheduler import make_scheduler

from ..tiny_pipeline import make_pipe, picture, run, seeded

DIFFUSION = [
    "DDIMScheduler",
    "DDPMScheduler",
    "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "UniPCMultistepScheduler",
]
# DEISMultistepScheduler can be set up for a flow, but its sigmas stop short of 0 there.
FLOW = [
    "FlowMatchEulerDiscreteScheduler",
    "FlowMatchHeunDiscreteScheduler",
    "DPMSolverMultistepScheduler",
    "UniPCMultistepScheduler",
]
CLEAN = torch.randn(1, 4, 8, 8, generator=seeded(7))


def alpha_at(t):
    """Product of alphas of Stable Diffusion's schedule at a timestep that may lie between two."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    alphas = torch.cumprod(1 - betas, 0)
    log_sigmas = ((1 - alphas) / alphas).log()
    low = min(int(t), 998)
    log_sigma = torch.lerp(log_sigmas[low], log_sigmas[low + 1], float(t) - low)
    return float(torch.sigmoid(-log_sigma))


def oracle(prediction_type):
    """A UNet that knows the clean latents and answers exactly."""

    def forward(z, t, y, return_dict=False, **residuals):
        t = float(t)
        clean = CLEAN.expand_as(z)
        if prediction_type == "flow":
            return ((z - clean) / (t / 1000),)
        a = alpha_at(t)
        noise = (z - a**0.5 * clean) / (1 - a) ** 0.5
        return (noise if prediction_type == "epsilon" else a**0.5 * noise - (1 - a) ** 0.5 * clean,)

    return forward


def sample(name, prediction_type, **changes):
    pipe = make_pipe(prediction_type=prediction_type)
    options = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
    own = name.startswith("FlowMatch") or prediction_type != "flow"
    pipe.scheduler = getattr(diffusers, name).from_config(pipe.scheduler.config, **({} if own else options))
    pipe.unet.forward = oracle(prediction_type)
    return [run(pipe, query_map=None, num_inference_steps=10, **changes) for _ in range(2)]


@pytest.mark.parametrize("changes", [{}, {"image": picture(1), "strength": 0.6}], ids=["noise", "image"])
@pytest.mark.parametrize(
    "name, prediction_type",
    [(name, "epsilon") for name in DIFFUSION]
    + [(name, "v_prediction") for name in DIFFUSION if name.startswith(("DDIM", "Euler", "UniPC"))]
    + [(name, "flow") for name in FLOW],
)
def test_exact_predictions_lead_to_the_clean_latents(name, prediction_type, changes):
    first, again = sample(name, prediction_type, **changes)
    # Stable Diffusion's schedule ends at a noise of 0.03, and a solver's times are rounded to whole ones.
    torch.testing.assert_close(first, CLEAN, rtol=0, atol=0.15)
    torch.testing.assert_close(again, CLEAN, rtol=0, atol=0.15)  # nothing of the first run is left


def test_a_stochastic_scheduler_draws_from_the_generators():
    pipe = make_pipe(prediction_type="epsilon")
    pipe.scheduler = diffusers.EulerAncestralDiscreteScheduler.from_config(pipe.scheduler.config)
    generators = [seeded(1), seeded(2)]
    both = run(pipe, prompt=["a", "a"], generator=generators)
    torch.testing.assert_close(both[1:], run(pipe, prompt="a", generator=seeded(2)), rtol=0, atol=1e-4)
    assert not torch.allclose(both[0], both[1], atol=1e-2)


def test_the_models_own_schedulers():
    flow = make_scheduler({"prediction_type": "flow"})
    assert type(flow).__name__ == "FlowMatchEulerDiscreteScheduler" and flow.config.shift == 1.0
    ddim = make_scheduler({"prediction_type": "v_prediction", "rescale_betas_zero_snr": True})
    ddim.set_timesteps(4)
    assert ddim.timesteps.tolist() == [999, 749, 499, 249] and ddim.alphas_cumprod[-1] < 1e-6
    sd = make_scheduler()
    assert (sd.config.prediction_type, sd.config.steps_offset, sd.config.clip_sample) == ("epsilon", 1, False)
    assert sd.final_alpha_cumprod == sd.alphas_cumprod[0]
    with pytest.raises(ContextDiffusionError, match="prediction_type is 'x0'"):
        make_scheduler({"prediction_type": "x0"})


def test_more_steps_than_the_schedule_has():
    with pytest.raises(ContextDiffusionError, match="1001, but the schedule has 1000"):
        run(make_pipe(prediction_type="epsilon"), num_inference_steps=1001)


def test_eta_makes_ddim_stochastic():
    pipe = make_pipe(prediction_type="epsilon")
    assert not torch.allclose(run(pipe, eta=1.0), run(pipe), atol=1e-3)
    assert torch.equal(run(pipe, eta=1.0), run(pipe, eta=1.0))


@pytest.mark.parametrize(
    "prediction_type, scheduler, message",
    [
        ("flow", diffusers.DDIMScheduler(), "DDIMScheduler.*'epsilon'.*'flow'.*use a FlowMatch"),
        ("flow", diffusers.UniPCMultistepScheduler(), "'flow_prediction', use_flow_sigmas=True"),
        (
            "flow",
            diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction"),
            "use_flow_sigmas=True",
        ),
        ("epsilon", diffusers.FlowMatchEulerDiscreteScheduler(), "'flow'.*'epsilon'"),
        ("v_prediction", diffusers.EulerDiscreteScheduler(), "prediction_type='v_prediction'"),
    ],
)
def test_a_scheduler_that_does_not_fit_is_refused(prediction_type, scheduler, message):
    pipe = make_pipe(prediction_type=prediction_type)
    pipe.scheduler = scheduler
    with pytest.raises(ContextDiffusionError, match=message):
        run(pipe)
