"""Stage `decoder`: latents sampled anew, and a decoder alone that learns from them."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from context_diffusion.errors import ContextDiffusionError
from context_diffusion.training.decoder import DecoderStage
from context_diffusion.training.diffusion import DiffusionStage
from context_diffusion.training.loop import train

from .tiny_data import decoder_config, diffusion_config, write_tiny_data, write_tiny_encoders


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """A data set and a checkpoint of the diffusion stage."""
    root = tmp_path_factory.mktemp("decoder")
    data, encoders = write_tiny_data(root / "data"), write_tiny_encoders(root / "encoders")
    config = diffusion_config(data, encoders, root / "diffusion", steps=1)
    train(config, DiffusionStage(config))
    return data, root / "diffusion" / "tiny.safetensors"


@pytest.fixture
def stage(start, tmp_path):
    made = DecoderStage(decoder_config(*start, tmp_path))
    made.prepare(0, 1)
    return made


def test_the_decoder_alone_is_trained_and_gets_better(start, tmp_path):
    config = decoder_config(*start, tmp_path, steps=30, learning_rate=3e-3)
    stage = DecoderStage(config)
    stage.prepare(0, 1)

    @torch.no_grad()
    def loss_now():
        return sum(float(stage.module(stage.batch(step, 0, 1))[0]) for step in (900, 901))

    before = loss_now()
    train(config, stage)
    assert loss_now() < 0.9 * before
    first, second = load_file(start[1]), load_file(tmp_path / "tiny.safetensors")
    assert first.keys() == second.keys()
    changed = {name for name in first if not torch.equal(first[name], second[name])}
    assert changed and all(name.startswith("vae.decoder.") for name in changed)


def test_a_model_that_knows_the_noise_brings_the_latents_back(stage, monkeypatch):
    """Euler steps along the exact velocity eps - x end in x, from whatever level and in however many steps."""
    batch = stage.diffusion.batch(0, 0, 1)
    stage.settings["exact"] = 0.0
    seen = []

    def exact(z, timesteps, y, query):
        seen.append((z, timesteps))
        return batch["noise"] - batch["latents"]

    monkeypatch.setattr(stage.denoiser.model, "predict", exact)
    redrawn = stage.redraw(batch, np.random.default_rng(0))
    torch.testing.assert_close(redrawn, batch["latents"], rtol=0, atol=1e-5)
    level = (seen[0][1] / 1000).view(-1, 1, 1, 1)
    assert len(seen) == 3 and 0.2 <= level.min() < level.max() <= 0.7
    # The first step starts from the latents noised to that level; the others follow at two and one thirds of it.
    torch.testing.assert_close(seen[0][0], (1 - level) * batch["latents"] + level * batch["noise"])
    for (_, timesteps), share in zip(seen, (1, 2 / 3, 1 / 3), strict=True):
        torch.testing.assert_close(timesteps, 1000 * share * level.flatten())


def test_exact_latents_stay_and_others_do_not(stage):
    batch = stage.diffusion.batch(0, 0, 1)
    same = (stage.redraw(batch, np.random.default_rng(1)) == batch["latents"]).flatten(1).all(1)
    drawn = np.random.default_rng(1).random(len(same))
    assert same.tolist() == (drawn < 0.4).tolist() and 0 < same.sum() < len(same)
    stage.settings["exact"] = 1.0
    assert torch.equal(stage.redraw(batch, np.random.default_rng(1)), batch["latents"])


def test_crops_of_latents_lie_where_those_of_images_do(stage, monkeypatch):
    """Latents made of the images' own 8 x 8 means must match the crops' means."""
    monkeypatch.setattr(stage, "redraw", lambda batch, rng: torch.nn.functional.avg_pool2d(batch["images"], 8))
    batch = stage.batch(0, 0, 1)
    assert batch["images"].shape == (8, 3, 32, 32) and batch["latents"].shape == (8, 3, 4, 4)
    torch.testing.assert_close(torch.nn.functional.avg_pool2d(batch["images"], 8), batch["latents"])


def test_a_resumed_run_ends_in_the_same_bits(start, tmp_path):
    for folder, stops in (("whole", (None,)), ("broken", (2, None))):
        for stop in stops:
            config = decoder_config(*start, tmp_path / folder)
            train(config, DecoderStage(config), stop_after=stop)
    one, other = (load_file(tmp_path / folder / "state.safetensors") for folder in ("whole", "broken"))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"start_from": ""}, "start_from is missing"),
        ({"crop": 20}, "crop is 20"),
        ({"crop": 72}, "crop is 72"),
        ({"levels": (0.7, 0.2)}, "levels are (0.7, 0.2)"),
        ({"levels": (0.0, 0.5)}, "levels are (0.0, 0.5)"),
    ],
)
def test_settings_out_of_range_are_one_line(start, tmp_path, settings, message):
    config = decoder_config(*start, tmp_path)
    config.settings |= settings
    with pytest.raises(ContextDiffusionError, match=message.replace("(", r"\(").replace(")", r"\)")):
        DecoderStage(config)
