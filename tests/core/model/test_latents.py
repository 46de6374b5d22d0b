"""Images into latents and back, with both kinds of autoencoder, against each one's own calls."""

import pytest
import torch

from context_diffusion.model.latents import decode_latents, encode_images, vae_scale_factor

from ..tiny import taesd_vae, tiny_vae


def test_kl_gives_the_posteriors_mean_shifted_and_scaled():
    vae = tiny_vae().eval()
    vae.register_to_config(scaling_factor=0.5, shift_factor=0.25)
    images = torch.rand(2, 3, 32, 32)
    mean, _ = vae.quant_conv(vae.encoder(images * 2 - 1)).chunk(2, dim=1)
    latents = encode_images(vae, images)
    torch.testing.assert_close(latents, (mean - 0.25) * 0.5)
    decoded = vae.decoder(vae.post_quant_conv(mean)) / 2 + 0.5
    torch.testing.assert_close(decode_latents(vae, latents), decoded.clamp(0, 1))


def test_tiny_gives_its_latents_scaled():
    vae = taesd_vae(scaling_factor=0.5).eval()
    images = torch.rand(2, 3, 32, 40)
    # The layers themselves work on images in [0, 1], and the decoder bounds its latents by 3.
    raw = vae.encoder.layers(images)
    latents = encode_images(vae, images)
    assert latents.shape == (2, 4, 4, 5)
    torch.testing.assert_close(latents, raw * 0.5)
    large = 10 * torch.randn(2, 4, 4, 5)
    expected = vae.decoder.layers(3 * torch.tanh(large / 0.5 / 3)).clamp(0, 1)
    torch.testing.assert_close(decode_latents(vae, large), expected)


@pytest.mark.parametrize("make", [tiny_vae, taesd_vae])
def test_images_stay_in_range_and_gradients_flow(make):
    vae, latents = make().eval(), 5 * torch.randn(1, 4, 4, 4)
    with torch.no_grad():
        for weights in vae.parameters():
            weights.mul_(1.5)
    latents.requires_grad_(True)
    decoded = decode_latents(vae, latents)
    assert decoded.shape == (1, 3, 32, 32)
    assert decoded.min() >= 0 and decoded.max() <= 1
    decoded.sum().backward()
    assert latents.grad.abs().sum() > 0


def test_scale_factor_of_modules_and_of_checkpoints():
    from context_diffusion.checkpoint.parts import describe_part

    for vae in (tiny_vae(), taesd_vae()):
        assert vae_scale_factor(vae.config) == vae_scale_factor(describe_part("vae", vae)) == 8
    four = taesd_vae(decoder_block_out_channels=(64,) * 3, num_decoder_blocks=(1,) * 3)
    assert vae_scale_factor(four.config) == vae_scale_factor(describe_part("vae", four)) == 4
