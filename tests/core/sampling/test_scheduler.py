"""Schedulers with an oracle in the UNet's place: whatever the steps, the clean latents must come out."""

from contextlib import suppress

import diffusers
import pytest
import torch
from diffusers import ConfigMixin
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from context_diffusion.errors import ContextDiffusionError
from context_diffusion.sampling.scheduler import make_scheduler

from ..tiny_pipeline import make_pipe, picture, run, seeded

DIFFUSION = [
    "DDIMParallelScheduler",
    "DDIMScheduler",
    "DDPMParallelScheduler",
    "DDPMScheduler",
    "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "LCMScheduler",
    "LMSDiscreteScheduler",
    "SASolverScheduler",
    "TCDScheduler",
    "UniPCMultistepScheduler",
]
# DEISMultistepScheduler and SASolverScheduler can be set up for a flow, but their sigmas stop short of 0 there.
FLOW = [
    "FlowMatchEulerDiscreteScheduler",
    "FlowMatchHeunDiscreteScheduler",
    "FlowMatchLCMScheduler",
    "FlowMapEulerDiscreteScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "UniPCMultistepScheduler",
]
FLOW = [name for name in FLOW if hasattr(diffusers, name)]  # the earliest release has no flow maps
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
    own = name.startswith("Flow") or prediction_type != "flow"
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
        (
            "flow",
            diffusers.DDIMScheduler(),
            "DDIMScheduler fits no .*'flow': use FlowMatchEuler.* or ",
        ),
        ("flow", diffusers.UniPCMultistepScheduler(), "'flow_prediction', use_flow_sigmas=True"),
        (
            "flow",
            diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction"),
            "use_flow_sigmas=True",
        ),
        ("epsilon", diffusers.UniPCMultistepScheduler(use_flow_sigmas=True), "'epsilon'.*use_flow_sigmas=False"),
        ("epsilon", diffusers.FlowMatchEulerDiscreteScheduler(), "FlowMatchEuler.*'epsilon': use DDIMScheduler, "),
        ("epsilon", diffusers.PNDMScheduler(), "skip_prk_steps=False.*from_config.*skip_prk_steps=True"),
        ("v_prediction", diffusers.EulerDiscreteScheduler(), "prediction_type='v_prediction'"),
    ],
)
def test_a_scheduler_that_does_not_fit_is_refused(prediction_type, scheduler, message):
    pipe = make_pipe(prediction_type=prediction_type)
    pipe.scheduler = scheduler
    with pytest.raises(ContextDiffusionError, match=message):
        run(pipe)


def every_scheduler():
    """All classes of diffusers' that are there without further packages."""
    classes = [getattr(diffusers, name) for name in dir(diffusers) if "Scheduler" in name]
    return [each for each in classes if isinstance(each, type) and {SchedulerMixin, ConfigMixin} <= set(each.__mro__)]


def made(scheduler, config):
    """For a diffusion as the model's own scheduler says, or else as it comes."""
    for make in (lambda: scheduler.from_config(config, skip_prk_steps=True), scheduler):
        with suppress(TypeError, ValueError):
            return make()
    empty = scheduler.__new__(scheduler)  # it wants what only models of its kind have
    empty.register_to_config()
    return empty


@pytest.mark.parametrize("prediction_type", ["epsilon", "flow", None])
def test_every_other_scheduler_is_refused_by_name(prediction_type):
    """Each of diffusers' classes, those to come too, leads to the clean latents or is refused."""
    kind = prediction_type or "epsilon"
    pipe = make_pipe(prediction_type=kind)
    if prediction_type is None:
        pipe.register_to_config(schedule=None)
    own = pipe.scheduler.config
    pipe.unet.forward = oracle(kind)
    fitting = set()
    for scheduler in every_scheduler():
        pipe.scheduler = made(scheduler, own)
        name = scheduler.__name__
        if kind == "flow" and "use_flow_sigmas" in pipe.scheduler.config:
            pipe.scheduler = scheduler.from_config(own, use_flow_sigmas=True, prediction_type="flow_prediction")
        try:
            latents = run(pipe, query_map=None, num_inference_steps=10)
        except ContextDiffusionError as error:
            assert name in str(error) and "\n" not in str(error)
        else:
            fitting.add(name)
            if prediction_type or not name.startswith("Flow"):
                torch.testing.assert_close(latents, CLEAN, rtol=0, atol=0.15)
    assert fitting >= set({"epsilon": DIFFUSION, "flow": FLOW, None: DIFFUSION + FLOW}[prediction_type])
    assert "IPNDMScheduler" not in fitting and len(every_scheduler()) > 40
