"""More attention for a trained UNet, and less for its layout encoder."""

import pytest
import torch

from context_diffusion.checkpoint.native import check_native_limits
from context_diffusion.checkpoint.read import load_checkpoint
from context_diffusion.errors import ContextDiffusionError
from context_diffusion.training.begin.attention import attention_of, with_attention
from context_diffusion.training.begin.first_model import new_layout_encoder, new_unet
from context_diffusion.training.run.loop import train
from context_diffusion.training.settings import DiffusionSettings
from context_diffusion.training.stages.diffusion import DiffusionStage

from ..tiny_data import diffusion_config, write_tiny_data, write_tiny_encoders


def unet(*attention):
    torch.manual_seed(0)
    return new_unet(DiffusionSettings(channels=(32, 64, 64), attention=attention, head_channels=16), 4, 24)


def inputs():
    draw = torch.Generator().manual_seed(1)
    return torch.randn(2, 4, 16, 16, generator=draw), torch.tensor([10, 900]), torch.randn(2, 9, 24, generator=draw)


def test_new_attention_changes_nothing_and_is_trained():
    old = unet(False, True, True)
    grown = with_attention(old, [True, True, True])
    assert attention_of(old) == (False, True, True) and attention_of(grown) == (True, True, True)
    with torch.no_grad():
        assert torch.equal(grown(*inputs()).sample, old(*inputs()).sample)
    new = [name for name, _ in grown.named_parameters() if name not in old.state_dict()]
    # One transformer on the way down, two on the way up.
    assert {name.split(".transformer_blocks")[0] for name in new if ".transformer_blocks" in name} == {
        "down_blocks.0.attentions.0",
        "up_blocks.2.attentions.0",
        "up_blocks.2.attentions.1",
    }
    grown(*inputs()).sample.square().sum().backward()
    last = [grown.get_parameter(name) for name in new if name.endswith("proj_out.weight")]
    assert len(last) == 3 and all(parameter.grad.abs().max() > 0 for parameter in last)
    torch.optim.SGD(last, 1e-2).step()
    with torch.no_grad():
        assert not torch.allclose(grown(*inputs()).sample, old(*inputs()).sample)


@pytest.mark.parametrize("wanted", [(False, False, True), (True, True)])
def test_attention_is_not_taken_away(wanted):
    with pytest.raises(ContextDiffusionError, match=r"attention is .* the checkpoint has \[False, True, True\]"):
        with_attention(unet(False, True, True), wanted)


def test_a_layout_encoder_with_less_attention_is_a_copy_all_the_same():
    whole = unet(True, True, True)
    encoder = new_layout_encoder(whole, [False, True, True])
    assert attention_of(encoder) == (False, True, True)
    own = encoder.state_dict()
    shared = [name for name in own if name in whole.state_dict()]
    assert len(shared) > 60 and all(torch.equal(own[name], whole.state_dict()[name]) for name in shared)
    z, t, y = inputs()
    down, mid = encoder(z, t, y, torch.rand(2, 3, 128, 128), return_dict=False)
    assert (
        whole(z, t, y, down_block_additional_residuals=down, mid_block_additional_residual=mid).sample.shape == z.shape
    )
    for wanted in ([True, True], [True, True, True]):
        with pytest.raises(ContextDiffusionError, match="can only have less"):
            new_layout_encoder(unet(False, True, True), wanted)


def test_training_goes_on_with_more_attention(tmp_path):
    data, encoders = write_tiny_data(tmp_path / "data"), write_tiny_encoders(tmp_path / "encoders")
    config = diffusion_config(data, encoders, tmp_path / "one", steps=2)
    train(config, DiffusionStage(config))
    file = tmp_path / "one" / "tiny.safetensors"
    config = diffusion_config(data, encoders, tmp_path / "two", steps=3, learning_rate=3e-3)
    config.settings.update(start_from=str(file), attention=[True, True], vae="", clip="")
    stage = DiffusionStage(config)
    start = load_checkpoint(file, dtype=torch.float32)
    z, t = torch.randn(1, start.unet.config.in_channels, 8, 8), torch.tensor(500)
    y = torch.randn(1, 82, start.unet.config.cross_attention_dim)
    with torch.no_grad():
        expected, found = (model.unet(z, t, y).sample for model in (start, stage.module.model))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    train(config, stage)
    after = load_checkpoint(tmp_path / "two" / "tiny.safetensors", dtype=torch.float32)
    assert attention_of(after.unet) == (True, True) and attention_of(after.layout_encoder) == (False, True)
    assert after.unet.get_parameter("down_blocks.0.attentions.0.proj_out.weight").abs().max() > 0
    assert set(check_native_limits(after)) == set(check_native_limits(start))
