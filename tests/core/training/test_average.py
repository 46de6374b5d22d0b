"""Averages of models, and another decoder on the same latents."""

import pytest
import torch

from context_diffusion.checkpoint.parts import present_parts
from context_diffusion.checkpoint.read import load_checkpoint
from context_diffusion.checkpoint.write import save_checkpoint
from context_diffusion.cli import main
from context_diffusion.errors import ContextDiffusionError
from context_diffusion.training.begin.average import average_models, replace_vae
from context_diffusion.training.begin.vae import same_latents

from ..tiny import taesd_vae, tiny_model


def relatives(count):
    """Models with weights of their own and one autoencoder."""
    models = [tiny_model(seed) for seed in range(count)]
    for model in models[1:]:
        model.vae = models[0].vae
    return models


def test_the_average_weighs_every_part_but_the_autoencoder():
    models = relatives(3)
    before = [
        {name: {key: value.clone() for key, value in part.state_dict().items()} for name, part in parts.items()}
        for parts in map(present_parts, models)
    ]
    mean = average_models(models, [2, 1, 1])
    for name, part in present_parts(mean).items():
        for key, value in part.state_dict().items():
            one, two, three = (parts[name][key] for parts in before)
            if name == "vae" or not value.is_floating_point():
                assert torch.equal(value, one)
            else:
                torch.testing.assert_close(value, 0.5 * one + 0.25 * two + 0.25 * three)


@pytest.mark.parametrize(
    ("weights", "message"),
    [([1], "1 weights for 2 models"), ([1, -1], "from 0 on"), ([0, 0], "not all"), ([1, float("nan")], "from 0 on")],
)
def test_wrong_weights(weights, message):
    with pytest.raises(ContextDiffusionError, match=message):
        average_models(relatives(2), weights)


def test_one_model_is_no_average():
    with pytest.raises(ContextDiffusionError, match="got 1"):
        average_models(relatives(1))


def test_models_that_are_no_relatives_are_refused():
    first, second = relatives(2)
    second.layout_encoder = None
    second.schedule["prediction_type"] = "flow"
    with pytest.raises(ContextDiffusionError, match="model 2 differs from model 1 in layout_encoder, schedule"):
        average_models([first, second])
    with pytest.raises(ContextDiffusionError, match="in latents"):
        average_models([tiny_model(0), tiny_model(1)])


def test_only_a_decoder_can_be_replaced():
    torch.manual_seed(0)
    model, other = tiny_model(), taesd_vae()
    model.vae = taesd_vae().half()
    trained = taesd_vae()
    trained.load_state_dict(model.vae.float().state_dict())
    model.vae.half()
    with torch.no_grad():
        trained.decoder.layers[0].weight += 1
    assert same_latents(model.vae, trained) and not same_latents(model.vae, other)
    replace_vae(model, trained)
    assert model.vae is trained and trained.dtype == torch.float16
    with pytest.raises(ContextDiffusionError, match="makes other latents"):
        replace_vae(model, other)


def test_the_command_writes_a_checkpoint(tmp_path, capsys):
    models = relatives(2)
    files = [
        str(save_checkpoint(model, tmp_path / f"{i}.safetensors", torch.float16)) for i, model in enumerate(models)
    ]
    out = tmp_path / "mean.safetensors"
    assert main(["average", *files, "--weights", "3", "1", "--out", str(out)]) == 0
    found = load_checkpoint(out).unet.conv_in.weight
    assert found.dtype == torch.float16
    one, two = (model.unet.conv_in.weight for model in models)
    torch.testing.assert_close(found.float(), 0.75 * one + 0.25 * two, rtol=2e-3, atol=1e-4)
    assert main(["average", files[0], "--out", str(tmp_path / "no.safetensors")]) == 2
    assert "two models or more" in capsys.readouterr().err and not (tmp_path / "no.safetensors").exists()
