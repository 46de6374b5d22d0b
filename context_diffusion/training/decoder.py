"""Stage `decoder`: the VAE's decoder learns from latents as the diffusion model makes them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ..checkpoint import save_checkpoint
from ..errors import ContextDiffusionError
from ..latents import decode_latents, decode_unclamped, encode_images
from ..layout import pick_rows
from ..precision import multiply_in_bf16
from .config import RunConfig
from .diffusion import POOL_GROUPS, SHARES, DiffusionStage
from .loop import batch_seed
from .preview import preview_grid
from .vae import ReconstructionLoss, busier_crop


class DecoderObjective(nn.Module):
    """Reconstruction loss of crops decoded from scaled latents; the encoder is frozen."""

    def __init__(self, vae: nn.Module, settings: dict) -> None:
        super().__init__()
        self.vae = vae
        vae.requires_grad_(False).decoder.requires_grad_(True)
        # No module: what is frozen in it is no part of the run's state.
        self.loss = ReconstructionLoss(settings.get("weights", {}), settings.get("feature_weights", ""))

    def forward(self, batch: dict) -> tuple[Tensor, dict]:
        loss, numbers = self.loss(decode_unclamped(self.vae, batch["latents"]), batch["images"])
        return loss, {name: value.detach() for name, value in numbers.items()}


class DecoderStage:
    """Crops of training pictures, a share of them from latents that the diffusion model has sampled.

    A picture's latents are noised to a level s and brought back by a few Euler steps of the model under the
    picture's own context, query and prompt. The layout and most colors stay; what comes anew are the model's own small
    errors, above all uneven fills. The decoder learns to give the true picture all the same. Its latents, and all
    else, stay as they are.

    Settings of [decoder]: `start_from` (checkpoint), `pool`, `pool_groups`, `shares` (as in [diffusion]), `crop`
    (pixels), `exact` (share of latents that are left as encoded), `levels` (lowest and highest s), `sampling_steps`,
    `weights` and `feature_weights` (as in [vae]), `info`.
    """

    def __init__(self, config: RunConfig) -> None:
        settings = config.settings
        self.config, self.settings = config, settings
        if not settings.get("start_from"):
            raise ContextDiffusionError("[decoder] start_from is missing: give the checkpoint of the diffusion stage")
        episodes = {
            "start_from": settings["start_from"],
            "pool": settings.get("pool"),
            "pool_groups": settings.get("pool_groups", POOL_GROUPS),
            "shares": settings.get("shares", SHARES),
            "info": settings.get("info", {}),
            # One level a picture, and conditions that leave little open.
            "repeats": 1,
            "text_dropout": 0.2,
            "context_dropout": 0.1,
            "query_dropout": 0.0,
        }
        self.diffusion = DiffusionStage(replace(config, settings=episodes))
        self.denoiser = self.diffusion.module.eval().requires_grad_(False)
        if config.precision == "bf16_matmul":
            multiply_in_bf16(self.denoiser)
        self.crop = settings.get("crop", 64)
        size = self.diffusion.library.size
        if self.crop % 8 or not 8 <= self.crop <= size:
            raise ContextDiffusionError(f"[decoder] crop is {self.crop}: give a multiple of 8 up to {size}")
        self.levels = settings.get("levels", (0.2, 0.7))
        if not 0 < self.levels[0] <= self.levels[1] <= 1:
            raise ContextDiffusionError(f"[decoder] levels are {self.levels}: give two rising numbers in (0, 1]")
        self.module = DecoderObjective(self.diffusion.vae, settings).to(memory_format=torch.channels_last)

    def prepare(self, rank: int, world: int) -> None:
        """Fill the pool; every process does its share."""
        self.diffusion.prepare(rank, world)

    def batch(self, step: int, rank: int, world: int) -> dict:
        rng = np.random.default_rng(batch_seed(self.config.seed, step, rank, 2))
        batch = self.diffusion.batch(step, rank, world)
        latents = self.redraw(batch, rng)
        images, side = batch["images"], self.crop // 8
        crops: dict[str, list[Tensor]] = {"images": [], "latents": []}
        for image, latent in zip(images, latents, strict=True):
            top, left = busier_crop(image, self.crop, rng, grid=8)
            crops["images"].append(image[:, top : top + self.crop, left : left + self.crop])
            top, left = top // 8, left // 8
            crops["latents"].append(latent[:, top : top + side, left : left + side])
        return {
            name: torch.stack(parts).contiguous(memory_format=torch.channels_last) for name, parts in crops.items()
        }

    @torch.no_grad()
    def redraw(self, batch: dict, rng: np.random.Generator) -> Tensor:
        """The batch's latents (B, C, h, w), all but a share `exact` of them sampled anew from a noise level on."""
        latents = batch["latents"]
        some = torch.from_numpy(rng.random(len(latents)) >= self.settings.get("exact", 0.4)).nonzero().flatten()
        if not len(some):
            return latents
        y, features = self.denoiser.conditions(batch)
        y, features = y[some], pick_rows(features, some)
        level = torch.from_numpy(rng.uniform(*self.levels, size=len(some))).float().view(-1, 1, 1, 1)
        z = (1 - level) * latents[some] + level * batch["noise"][some]
        steps = self.settings.get("sampling_steps", 3)
        for step in range(steps):
            s = level * (1 - step / steps)
            velocity = self.denoiser.model.predict(z, 1000.0 * s.flatten(), y, features)
            z = z - level / steps * velocity
        redrawn = latents.clone()
        redrawn[some] = z
        return redrawn

    @torch.no_grad()
    def psnr(self, count: int = 24) -> float:
        """Mean peak signal to noise ratio of held-out emoji of the training styles, encoded and decoded, dB."""
        library, vae = self.diffusion.library, self.module.vae
        keys = library.heldout_keys
        images = torch.cat([library.batch(style, keys[style][:count]) for style in library.train_styles])
        decoded = torch.cat([decode_latents(vae, encode_images(vae, part)) for part in images.split(16)])
        error = (decoded - images).square().mean((1, 2, 3))
        return float((-10 * error.clamp(min=1e-8).log10()).mean())

    def sample(self) -> Tensor:
        """As the diffusion stage's, with the decoder of now."""
        return preview_grid(self.diffusion.whole(), self.diffusion.library)

    def finish(self, out: Path) -> None:
        """Write the whole model in fp16."""
        name = self.settings.get("info", {}).get("name", "model")
        save_checkpoint(self.diffusion.whole(), out / f"{name}.safetensors", dtype=torch.float16)
        (out / "figures.txt").write_text(f"held-out PSNR, training styles: {self.psnr():.2f} dB\n")
