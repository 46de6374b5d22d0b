"""Stage `vae`: the small autoencoder, on crops of plain and transformed emoji."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional

from ...checkpoint.native_vae import tiny_vae_limits
from ...data.library import EmojiLibrary
from ...data.transforms import sample_transform
from ...errors import ContextDiffusionError
from ..begin.blocks import with_blocks
from ..config import RunConfig
from ..run.loop import batch_seed

logger = logging.getLogger(__name__)

# Below it SqueezeNet's poolings have nothing left to pool.
SMALLEST_CROP = 24


def load_vae(folder: str | Path) -> nn.Module:
    """The `vae/` folder that a run of this stage wrote.

    Raises:
        ContextDiffusionError: the folder holds no such autoencoder, another kind of one, or a damaged one.
    """
    from diffusers import AutoencoderTiny

    path = Path(folder) / "vae"
    if not (path / "config.json").is_file():
        raise ContextDiffusionError(f"{folder} has no vae/ folder of the vae stage: run that stage first")
    damaged = f"{path} is damaged: run the vae stage again, or name another folder"
    try:
        kind = json.loads((path / "config.json").read_text())["_class_name"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ContextDiffusionError(damaged) from error
    if kind != AutoencoderTiny.__name__:
        raise ContextDiffusionError(
            f"{path} holds an {kind} and the vae stage writes an {AutoencoderTiny.__name__}: name the folder of a run "
            "of that stage"
        )
    try:
        return AutoencoderTiny.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ContextDiffusionError(f"{damaged} ({' '.join(str(error).split())[:200]})") from error


def new_vae(latent_channels: int, encoder_blocks: tuple[int, ...], decoder_blocks: tuple[int, ...]) -> nn.Module:
    """A tiny autoencoder of factor 8 in TAESD's shape: width 64, no normalisation, ReLU.

    A KL autoencoder needs groups of 32 to load in ComfyUI; at the 32 channels that two cores can train, each group
    is one channel, and the norms wipe out the mean color of every flat area. This shape has no norms at all.
    """
    from diffusers import AutoencoderTiny

    return AutoencoderTiny(
        latent_channels=latent_channels,
        encoder_block_out_channels=(64,) * 4,
        decoder_block_out_channels=(64,) * 4,
        num_encoder_blocks=tuple(encoder_blocks),
        num_decoder_blocks=tuple(decoder_blocks),
    )


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

    def __init__(self, vae: nn.Module, features: nn.Module | None, settings: dict) -> None:
        super().__init__()
        self.vae = vae
        # In a list: frozen features are no part of the module's state. The stage's `frozen` moves them.
        self.features = [features]
        self.weights = {"l2": 1.0, "gradient": 1.0, "features": 0.1, "flat": 0.0, **settings.get("weights", {})}
        self.noise = settings.get("noise", 0.2)

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
        loss = l1 + weights["l2"] * l2 + weights["gradient"] * gradient
        if weights["flat"]:
            loss = loss + weights["flat"] * (difference.abs() * flat_areas(images)).mean()
        numbers = {"l1": l1, "rmse": l2.sqrt(), "spread": spread.mean()}
        if self.features[0] is not None and weights["features"]:
            distance = self.features[0].distance(decoded, images).mean()
            loss = loss + weights["features"] * distance
            numbers["features"] = distance
        return loss, {name: value.detach() for name, value in numbers.items()}


class VAEStage:
    """Crops of training emoji, a share of them in transformed styles.

    Settings of [vae]: `start_from` (folder of an earlier run to go on from, whose `latent_channels` win),
    `train_encoder` (false: the decoder alone), `latent_channels`, `encoder_blocks` and `decoder_blocks` (residual
    blocks a level; with `start_from` as many as that has, or more), `crop` (pixels), `transformed` (share), `noise`,
    `weights` (l2, gradient, features, flat), `feature_weights` (SqueezeNet file, "" for none).
    """

    def __init__(self, config: RunConfig) -> None:
        settings = config.settings
        torch.manual_seed(config.seed)
        self.config = config
        self.library = EmojiLibrary(config.data)
        self.crop = settings.get("crop", 64)
        self.transformed = settings.get("transformed", 0.3)
        if self.crop % 8 or not 8 <= self.crop <= self.library.size:
            raise ContextDiffusionError(f"[vae] crop is {self.crop}: give a multiple of 8 up to {self.library.size}")
        features = None
        # What is computed with beside `module`.
        self.frozen: tuple[nn.Module, ...] = ()
        if settings.get("feature_weights"):
            from ...features.networks import load_squeezenet

            if self.crop < SMALLEST_CROP:
                raise ContextDiffusionError(
                    f"[vae] crop is {self.crop}, which is too small for feature_weights' network: give {SMALLEST_CROP} "
                    "or more, or leave feature_weights out"
                )
            features = load_squeezenet(Path(settings["feature_weights"]).expanduser())
            features.to(memory_format=torch.channels_last)
            self.frozen = (features,)
        if settings.get("start_from"):
            vae = load_vae(settings["start_from"])
            vae = with_blocks(
                vae,
                settings.get("encoder_blocks", vae.config.num_encoder_blocks),
                settings.get("decoder_blocks", vae.config.num_decoder_blocks),
            )
        else:
            vae = new_vae(
                settings.get("latent_channels", 8),
                settings.get("encoder_blocks", (1, 3, 3, 3)),
                settings.get("decoder_blocks", (3, 3, 3, 1)),
            )
        self.latent_channels = vae.config.latent_channels
        # The decoder alone: the latents, and all that was trained on them, stay as they are.
        self.train_encoder = settings.get("train_encoder", True)
        vae.encoder.requires_grad_(self.train_encoder)
        for limit in tiny_vae_limits(vae.config):
            logger.warning("a model with this autoencoder will not load in ComfyUI: %s", limit)
        self.module = VAEObjective(vae, features, settings).to(memory_format=torch.channels_last)

    def batch(self, step: int, rank: int, world: int) -> dict:
        rng = np.random.default_rng(batch_seed(self.config.seed, step, rank))
        generator = torch.Generator().manual_seed(batch_seed(self.config.seed, step, rank, 1))
        images = torch.cat([self._crop(rng) for _ in range(self.config.batch_size)])
        side = self.crop // 8
        return {
            "images": images.contiguous(memory_format=torch.channels_last),
            "noise": torch.randn(len(images), self.latent_channels, side, side, generator=generator),
            # Half of the crops are decoded from exact latents.
            "noise_level": (torch.rand(len(images), 1, 1, 1, generator=generator) * 2 - 1).clamp(min=0),
        }

    def _crop(self, rng: np.random.Generator) -> Tensor:
        style = str(rng.choice(self.library.train_styles))
        keys = self.library.train_keys[style]
        key = keys[int(rng.integers(len(keys)))]
        image = self.library.batch(style, [key])
        if rng.random() < self.transformed:
            image = sample_transform(rng)(image, self.library.background(style, [key]))
        room = self.library.size - self.crop + 1
        # The busier of two crops: many emoji leave corners empty.
        crops = []
        for _ in range(2):
            top, left = int(rng.integers(room)), int(rng.integers(room))
            crops.append(image[..., top : top + self.crop, left : left + self.crop])
        return max(crops, key=lambda crop: float(crop.std()))

    def _heldout(self, count: int) -> Tensor:
        """Held-out emoji of the training styles, (count * styles, 3, H, W)."""
        keys = self.library.heldout_keys
        return torch.cat([self.library.batch(style, keys[style][3::17][:count]) for style in self.library.train_styles])

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
        if self.train_encoder:
            images = torch.cat(
                [self.library.batch(style, self.library.train_keys[style][::40]) for style in self.library.train_styles]
            )
            parts = images.to(next(vae.parameters())).split(16)
            latents = torch.cat([vae.encode(part * 2 - 1).latents for part in parts])
            vae.register_to_config(scaling_factor=round(1 / float(latents.std()), 5))
        vae.save_pretrained(out / "vae")
        (out / "figures.txt").write_text(f"held-out PSNR, training styles: {self.psnr(24):.2f} dB\n")
