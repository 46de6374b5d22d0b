"""The names that a user picks: the library knows each of them, and no other."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from context_diffusion import choices
from context_diffusion.errors import ContextDiffusionError
from context_diffusion.images import fit_image
from context_diffusion.maps import MAPS
from context_diffusion.model.visual_context import Join
from context_diffusion.sampling.flow import FlowSampler

from .tiny import tiny_model

ROOT = Path(__file__).parents[2]


def test_reading_them_loads_no_torch():
    code = "import context_diffusion.choices, sys; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_maps():
    assert list(MAPS) == list(choices.MAPS)
    assert len(set(choices.MAPS.values())) == len(MAPS)


def test_fits():
    picture = torch.rand(3, 20, 30)
    fitted = [fit_image(picture, 16, fit) for fit in choices.FITS]
    assert all(image.shape == (3, 16, 16) for image in fitted)
    assert not any(torch.equal(one, two) for one, two in zip(fitted, fitted[1:], strict=False))
    with pytest.raises(ContextDiffusionError, match=", ".join(choices.FITS)):
        fit_image(picture, 16, "contain")


def test_aggregations():
    tokens = torch.rand(2, 5, 8)
    expected = {"mean": tokens.mean(0), "sum": tokens.sum(0), "concat": tokens.flatten(0, 1)}
    assert set(choices.AGGREGATIONS) == set(expected)
    for name in choices.AGGREGATIONS:
        join = Join(torch.ones(2), name)
        join.add(tokens)
        torch.testing.assert_close(join.result().flatten(0, 1), expected[name])
    with pytest.raises(ContextDiffusionError, match=", ".join(choices.AGGREGATIONS)):
        Join(torch.ones(2), "max")


def test_samplers():
    model = tiny_model(prediction_type="flow")
    for name in choices.SAMPLERS:
        assert FlowSampler(model, sampler=name).sampler == name
    with pytest.raises(ContextDiffusionError, match=", ".join(choices.SAMPLERS)):
        FlowSampler(model, sampler="heun")
