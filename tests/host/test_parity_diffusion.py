"""MODEL and CONTROL_NET in fp32 on a real server against the diffusers modules of the same file."""

from __future__ import annotations

import pytest
import torch

from context_diffusion.sampling.scheduler import make_scheduler

from .native import NAMES, Native, relative
from .server import Server

TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def ran(host_fp32: Server, request: pytest.FixtureRequest) -> tuple[Native, dict[str, torch.Tensor]]:
    native = Native(host_fp32, request.param)
    prompt, loader = native.graph()
    probe = prompt.add(
        "ProbeNetworks", model=loader[0], control_net=loader[5], tokens=77 + native.core.context_tokens, height=8,
        width=16, percents="0.1 0.6",
    )  # fmt: skip
    return native, host_fp32.tensors(host_fp32.run(prompt), probe)


def network_input(native: Native, found: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """What the host's sampling hands the network: x scaled, and the timestep of each sigma."""
    x, sigma = found["x"], found["sigma"]
    if native.core.schedule["prediction_type"] == "flow":
        return x, 1000 * sigma
    distance = sigma.log()[None] - found["sigmas"].log()[:, None]
    return x / (sigma.square() + 1).sqrt().view(-1, 1, 1, 1), distance.abs().argmin(0)


def denoised(native: Native, found: dict[str, torch.Tensor], prediction: torch.Tensor) -> torch.Tensor:
    x, sigma = found["x"], found["sigma"].view(-1, 1, 1, 1)
    if native.core.schedule["prediction_type"] == "v_prediction":
        return x / (sigma.square() + 1) - prediction * sigma / (sigma.square() + 1).sqrt()
    return x - sigma * prediction


@torch.no_grad()
@pytest.mark.parametrize("ran", NAMES, indirect=True)
def test_model(ran: tuple[Native, dict[str, torch.Tensor]]) -> None:
    native, found = ran
    x, timestep = network_input(native, found)
    prediction = native.core.predict(x, timestep, found["y"])
    assert relative(found["denoised"], denoised(native, found, prediction)) < TOLERANCE
    # The prediction itself, where it can be had back from what the host makes of it.
    if native.core.schedule["prediction_type"] != "v_prediction":
        got = (found["x"] - found["denoised"]) / found["sigma"].view(-1, 1, 1, 1)
        assert relative(got, prediction) < TOLERANCE


@torch.no_grad()
@pytest.mark.parametrize("ran", NAMES, indirect=True)
def test_control_net(ran: tuple[Native, dict[str, torch.Tensor]]) -> None:
    native, found = ran
    x, timestep = network_input(native, found)
    down, middle = native.core.layout_encoder(x, timestep, found["y"], found["hint"], return_dict=False)
    assert len(down) == sum(key.startswith("output.") for key in found)
    for number, expected in enumerate(down):
        assert relative(found[f"output.{number}"], expected) < TOLERANCE, number
    assert relative(found["middle.0"], middle) < TOLERANCE
    with_control = denoised(native, found, native.core.predict(x, timestep, found["y"], found["hint"]))
    assert relative(found["denoised_with_control"], with_control) < TOLERANCE
    # It says something at all.
    assert relative(found["denoised"], with_control) > 1e-3


@pytest.mark.parametrize("ran", NAMES, indirect=True)
def test_noise_levels(ran: tuple[Native, dict[str, torch.Tensor]]) -> None:
    native, found = ran
    if native.core.schedule["prediction_type"] == "flow":
        expected = torch.arange(1, 1001) / 1000
    else:
        kept = make_scheduler(native.core.schedule).alphas_cumprod
        expected = ((1 - kept) / kept).sqrt()
    # The last level of a schedule that ends without signal is infinite; the host has a large number of its own there.
    assert relative(found["sigmas"][:-1].log(), expected[:-1].log()) < TOLERANCE
