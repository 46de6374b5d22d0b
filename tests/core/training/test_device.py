"""Training where weights are not on the CPU: every stage's loss, the device that keeps no numbers in a GPU's place.

A tensor that was left on the CPU is an error there as it is with CUDA; what the numbers are, the other tests say.
"""

import pytest
import torch

from context_diffusion.features.networks import SqueezeNetFeatures
from context_diffusion.training.run.placement import to_device
from context_diffusion.training.stages.clip import CLIPStage
from context_diffusion.training.stages.diffusion import DiffusionStage
from context_diffusion.training.stages.vae import VAEStage

from ..tiny_data import clip_config, diffusion_config, vae_config, write_tiny_data, write_tiny_encoders

META = torch.device("meta")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("device")
    return write_tiny_data(folder / "data"), write_tiny_encoders(folder / "encoders")


def vae(folders, out, monkeypatch):
    config = vae_config(folders[0], out)
    config.settings.update(crop=32, feature_weights="any", weights={"flat": 1.0})
    monkeypatch.setattr("context_diffusion.features.networks.load_squeezenet", lambda path: SqueezeNetFeatures())
    return VAEStage(config)


def clip(folders, out, monkeypatch):
    return CLIPStage(clip_config(folders[0], out))


def diffusion(folders, out, monkeypatch, **settings):
    config = diffusion_config(*folders, out)
    config.settings.update(settings)
    return DiffusionStage(config)


STAGES = {
    "vae": vae,
    "clip": clip,
    "flow": diffusion,
    "epsilon": lambda *arguments: diffusion(*arguments, prediction_type="epsilon"),
}


@pytest.mark.parametrize("name", STAGES)
def test_a_step_is_computed_where_the_weights_are(folders, tmp_path, monkeypatch, name):
    check_step(STAGES[name](folders, tmp_path, monkeypatch))


def check_step(stage):
    if hasattr(stage, "prepare"):
        stage.prepare(0, 1)
    module = stage.module.to(META)
    for frozen in getattr(stage, "frozen", ()):
        frozen.to(META)
    batch = stage.batch(0, 0, 1)
    loss, numbers = module(to_device(batch, META))
    assert loss.device == META and all(value.device == META for value in numbers.values())
    loss.backward()
    assert all(value.grad is None or value.grad.device == META for value in module.parameters())
    # And it can fail: the batch is not there of itself.
    with pytest.raises((RuntimeError, NotImplementedError)):
        module(batch)
