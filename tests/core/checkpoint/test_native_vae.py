"""ComfyUI's tiny autoencoder, written out here layer by layer, must compute what diffusers' does."""

import pytest
import torch
from torch import nn

from context_diffusion.checkpoint.native_vae import native_tiny_vae_state_dict
from context_diffusion.errors import ContextDiffusionError

from ..tiny import taesd_vae


def conv(inputs, outputs, **options):
    return nn.Conv2d(inputs, outputs, 3, padding=1, **options)


class Bound(nn.Module):
    def forward(self, z):
        return 3 * torch.tanh(z / 3)


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Sequential(conv(64, 64), nn.ReLU(), conv(64, 64), nn.ReLU(), conv(64, 64))

    def forward(self, x):
        return torch.relu(self.conv(x) + x)


def blocks(count):
    return [Residual() for _ in range(count)]


class Native(nn.Module):
    """Images in [-1, 1] <-> latents; always 1, 3, 3, 3 blocks in and 3, 3, 3, 1 out."""

    def __init__(self, channels):
        super().__init__()
        encoder = [conv(3, 64), *blocks(1)]
        for _ in range(3):
            encoder += [conv(64, 64, stride=2, bias=False), *blocks(3)]
        self.taesd_encoder = nn.Sequential(*encoder, conv(64, channels))
        decoder = [Bound(), conv(channels, 64), nn.ReLU()]
        for _ in range(3):
            decoder += [*blocks(3), nn.Upsample(scale_factor=2), conv(64, 64, bias=False)]
        self.taesd_decoder = nn.Sequential(*decoder, *blocks(1), conv(64, 3))
        self.vae_scale = nn.Parameter(torch.tensor(float("nan")))
        self.vae_shift = nn.Parameter(torch.tensor(float("nan")))

    def encode(self, images):
        return self.taesd_encoder(images / 2 + 0.5) / self.vae_scale + self.vae_shift

    def decode(self, latents):
        return self.taesd_decoder((latents - self.vae_shift) * self.vae_scale) * 2 - 1


@torch.no_grad()
@pytest.mark.parametrize(
    ("encoder_blocks", "decoder_blocks", "channels"),
    [
        ((1, 1, 1, 2), (2, 2, 1, 1), 8),
        ((1, 1, 1, 1), (1, 1, 1, 1), 4),
        ((1, 3, 3, 3), (3, 3, 3, 1), 4),
        ((1, 2, 3, 1), (1, 3, 2, 1), 16),
    ],
)
def test_native_network_computes_the_same(encoder_blocks, decoder_blocks, channels):
    torch.manual_seed(0)
    vae = taesd_vae(latent_channels=channels, num_encoder_blocks=encoder_blocks, num_decoder_blocks=decoder_blocks)
    native = Native(channels)
    native.load_state_dict(native_tiny_vae_state_dict(vae.config, vae.state_dict()), strict=True)
    images, latents = torch.rand(2, 3, 32, 48) * 2 - 1, 4 * torch.randn(2, channels, 4, 6)
    for got, expected in (
        (native.encode(images), vae.encode(images).latents),
        (native.decode(latents), vae.decode(latents).sample),
    ):
        assert expected.std() > 1e-3
        assert (got - expected).norm() <= 1e-5 * expected.norm()
        assert (got - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_weights_keep_their_dtype_and_the_vae_is_left_alone():
    vae = taesd_vae().to(torch.bfloat16)
    before = {key: tensor.clone() for key, tensor in vae.state_dict().items()}
    native = native_tiny_vae_state_dict(vae.config, vae.state_dict())
    assert {tensor.dtype for tensor in native.values()} == {torch.bfloat16}
    assert native["taesd_decoder.1.weight"].shape[1] == 4  # where ComfyUI reads the number of channels
    assert all(torch.equal(before[key], tensor) for key, tensor in vae.state_dict().items())


def test_a_vae_that_does_not_fit_is_refused():
    with pytest.raises(ContextDiffusionError, match="num_encoder_blocks are .1, 4, 1, 1."):
        native_tiny_vae_state_dict(taesd_vae(num_encoder_blocks=(1, 4, 1, 1)).config, {})
