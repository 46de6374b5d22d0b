"""Stage `vae`: the small autoencoder, on crops of plain and transformed emoji."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from ...checkpoint.native_vae import tiny_vae_limits
from ...data.mixture import Mixture
from ...data.transforms import sample_transform
from ...errors import ContextDiffusionError
from ..begin.vae import load_vae, new_vae, with_blocks
from ..config import RunConfig, stage_settings
from ..run.loop import batch_seed
from ..settings import VAESettings

logger = logging.getLogger(__name__)

# Below it SqueezeNet's poolings have nothing left to pool.
SMALLEST_CROP = 24


def flat_areas(images: Tensor, size: int = 5, tolerance: float = 1 / 64) -> Tensor:
    """Where every pixel of the `size` x `size` around one has nearly the same color.

    Args:
        images: (B, 3, H, W) in [0, 1].
        size: pixels, odd; outside the image there is nothing to differ.
        tolerance: the largest difference in a channel.

    Returns:
        (B, 1, H, W), 1 inside and 0 elsewhere.
    """
    highest, lowest = (functional.max_pool2d(sign * images, size, 1, size // 2) for sign in (1, -1))
    return (highest + lowest <= tolerance).all(dim=1, keepdim=True).to(images)


class VAEObjective(nn.Module):
    """L1 + L2 + gradient + frozen-feature distance, decoded from noised latents.

    The decoder meets latents with noise of up to `noise` of their own spread: the diffusion model's latents are
    never exact, and a decoder that forgives small errors draws flat fills flat. `weights.flat` weighs L1 more where
    the truth is flat: an error there is small beside those at edges, and stains a fill that should have one color.
    """

    def __init__(self, vae: nn.Module, features: nn.Module | None, settings: VAESettings) -> None:
        super().__init__()
        self.vae = vae
        # In a list: frozen features are no part of the module's state. The stage's `frozen` moves them.
        self.features = [features]
        self.weights, self.noise = settings.weights, settings.noise

    def forward(self, batch: dict) -> tuple[Tensor, dict]:
        images = batch["images"]
        latents = self.vae.encode(images * 2 - 1).latents
        spread = latents.detach().std(dim=(0, 2, 3), keepdim=True)
        noised = latents + batch["noise_level"] * self.noise * spread * batch["noise"]
        decoded = self.vae.decode(noised).sample / 2 + 0.5
        difference = decoded - images
        l1, l2 = difference.abs().mean(), difference.square().mean()
        gradient = (difference[..., 1:] - difference[..., :-1]).abs().mean()
        gradient = gradient + (difference[..., 1:, :] - difference[..., :-1, :]).abs().mean()
        weights = self.weights
        loss = l1 + weights.l2 * l2 + weights.gradient * gradient
        if weights.flat:
            loss = loss + weights.flat * (difference.abs() * flat_areas(images)).mean()
        numbers = {"l1": l1, "rmse": l2.sqrt(), "spread": spread.mean()}
        if self.features[0] is not None and weights.features:
            distance = self.features[0].distance(decoded, images).mean()
            loss = loss + weights.features * distance
            numbers["features"] = distance
        return loss, {name: value.detach() for name, value in numbers.items()}


class VAEStage:
    """Crops of training emoji, a share of them in transformed styles; its settings are `VAESettings`."""

    def __init__(self, config: RunConfig) -> None:
        torch.manual_seed(config.seed)
        self.config, self.settings = config, stage_settings(config)
        self.mixture = Mixture.open(config.data, self.settings.more_data)
        self.library = self.mixture.library
        settings = self.settings
        if settings.crop > self.library.size:
            raise ContextDiffusionError(
                f"[vae] crop is {settings.crop}: give a multiple of 8 up to {self.library.size}, the pictures' size"
            )
        features = _load_features(settings)
        # What is computed with beside `module`.
        self.frozen: tuple[nn.Module, ...] = () if features is None else (features,)
        vae = _first_vae(settings)
        # The decoder alone: the latents, and all that was trained on them, stay as they are.
        vae.encoder.requires_grad_(settings.train_encoder)
        for limit in tiny_vae_limits(vae.config):
            logger.warning("a model with this autoencoder will not load in ComfyUI: %s", limit)
        self.module = VAEObjective(vae, features, settings).to(memory_format=torch.channels_last)

    def batch(self, step: int, rank: int, world: int) -> dict:
        rng = np.random.default_rng(batch_seed(self.config.seed, step, rank))
        generator = torch.Generator().manual_seed(batch_seed(self.config.seed, step, rank, 1))
        images = torch.cat([self._crop(rng) for _ in range(self.config.batch_size)])
        side, channels = self.settings.crop // 8, self.module.vae.config.latent_channels
        return {
            "images": images.contiguous(memory_format=torch.channels_last),
            "noise": torch.randn(len(images), channels, side, side, generator=generator),
            # Half of the crops are decoded from exact latents.
            "noise_level": (torch.rand(len(images), 1, 1, 1, generator=generator) * 2 - 1).clamp(min=0),
        }

    def _crop(self, rng: np.random.Generator) -> Tensor:
        library = self.mixture.draw(rng)
        style = str(rng.choice(library.train_styles))
        keys = library.train_keys[style]
        key = keys[int(rng.integers(len(keys)))]
        image = library.batch(style, [key])
        if rng.random() < self.settings.transformed:
            image = sample_transform(rng)(image, library.background(style, [key]))
        side = self.settings.crop
        room = library.size - side + 1
        # The busier of two crops: many emoji leave corners empty.
        crops = []
        for _ in range(2):
            top, left = int(rng.integers(room)), int(rng.integers(room))
            crops.append(image[..., top : top + side, left : left + side])
        return max(crops, key=lambda crop: float(crop.std()))

    def _heldout(self, count: int) -> Tensor:
        """Held-out emoji of the training styles, or any where few are, (up to count * styles, 3, H, W)."""
        library, keys = self.library, self.library.heldout_keys
        chosen = {style: keys[style][3::17] or keys[style] or library.keys[style] for style in library.train_styles}
        return torch.cat([library.batch(style, some[:count]) for style, some in chosen.items()])

    @torch.no_grad()
    def reconstruct(self, images: Tensor) -> Tensor:
        vae = self.module.vae
        parts = images.to(next(vae.parameters())).split(16)
        decoded = [vae.decode(vae.encode(part * 2 - 1).latents).sample.cpu() for part in parts]
        return (torch.cat(decoded) / 2 + 0.5).clamp(0, 1)

    def psnr(self, count: int = 8) -> float:
        """Mean of the images' peak signal to noise ratios on held-out emoji of the training styles, dB."""
        images = self._heldout(count)
        error = (self.reconstruct(images) - images).square().mean((1, 2, 3))
        return float((-10 * error.clamp(min=1e-8).log10()).mean())

    def sample(self) -> Tensor:
        images = self._heldout(1)
        grid = torch.cat([images, self.reconstruct(images)], dim=-2)
        return torch.cat(list(grid), dim=-1)

    @torch.no_grad()
    def finish(self, out: Path) -> None:
        """Set the scaling factor from the training latents' spread and write `vae/` (diffusers' format).

        Latents that stay as they are keep their scaling factor.
        """
        vae = self.module.vae.to(memory_format=torch.contiguous_format)
        if self.settings.train_encoder:
            # Every fortieth of a style, at least four.
            keys = self.library.train_keys
            images = torch.cat(
                [self.library.batch(style, some[:: min(40, max(1, len(some) // 4))]) for style, some in keys.items()]
            )
            parts = images.to(next(vae.parameters())).split(16)
            latents = torch.cat([vae.encode(part * 2 - 1).latents for part in parts])
            vae.register_to_config(scaling_factor=round(1 / float(latents.std()), 5))
        vae.save_pretrained(out / "vae")
        (out / "figures.txt").write_text(f"held-out PSNR, training styles: {self.psnr(24):.2f} dB\n")


def _first_vae(settings: VAESettings) -> nn.Module:
    """A new autoencoder, or the one to go on from, with more blocks if that is asked for."""
    if not settings.start_from:
        return new_vae(settings.latent_channels, settings.encoder_blocks, settings.decoder_blocks)
    vae = load_vae(settings.start_from)
    own = vae.config
    return with_blocks(
        vae, settings.encoder_blocks or own.num_encoder_blocks, settings.decoder_blocks or own.num_decoder_blocks
    )


def _load_features(settings: VAESettings) -> nn.Module | None:
    """SqueezeNet's, if there is a file of them."""
    if not settings.feature_weights:
        return None
    from ...features.networks import load_squeezenet

    if settings.crop < SMALLEST_CROP:
        raise ContextDiffusionError(
            f"[vae] crop is {settings.crop}, which is too small for feature_weights' network: give {SMALLEST_CROP} or "
            "more, or leave feature_weights out"
        )
    return load_squeezenet(Path(settings.feature_weights).expanduser()).to(memory_format=torch.channels_last)
