"""Stage `diffusion`: UNet, layout encoder, projector and the CLIP encoders together, on in-context episodes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ...checkpoint.lora import save_lora
from ...checkpoint.write import save_checkpoint
from ...data.mixture import Mixture
from ...errors import ContextDiffusionError
from ...model.context_diffusion import ContextDiffusion
from ...model.latents import encode_images, vae_scale_factor
from ...model.process import diffusion_loss
from ...model.visual_context import clip_preprocess
from ..begin.first_model import build_model, check_start, first_model, freeze_unused
from ..begin.lora import add_lora
from ..begin.vae import latents_digest
from ..config import RunConfig, stage_settings
from ..episodes.context import row_contexts
from ..episodes.groups import context_matrix
from ..episodes.pool import GROUP_SIZE, EpisodePool
from ..noise_levels import noise_levels
from ..run.loop import batch_seed
from ..run.preview import preview_grid
from ..settings import DiffusionSettings


class DiffusionObjective(nn.Module):
    """Encoders and denoiser in one forward pass: each picture is encoded once and serves many rows.

    Args:
        model: f and its encoders.
    """

    def __init__(self, model: ContextDiffusion) -> None:
        super().__init__()
        self.model = model

    def text(self, batch: dict) -> Tensor:
        """h^c of each row, (R, 77, d_c)."""
        return self.model.text_encoder(batch["ids"]).last_hidden_state[batch["text"]]

    def layout(self, batch: dict) -> Tensor | None:
        """The features of each row's query; None for a model without a layout encoder."""
        model = self.model
        return None if model.layout_encoder is None else model.encode_query(batch["queries"])[batch["rows"]]

    def inputs(self, batch: dict) -> tuple[Tensor, Tensor | None]:
        """y and the layout of each row."""
        model = self.model
        text, layout = self.text(batch), self.layout(batch)
        pixels = clip_preprocess(batch["images"], model.image_encoder.config.image_size)
        tokens = model.reading.image_tokens(model.image_encoder, pixels)
        return model.condition(text, row_contexts(model, tokens, batch["context"])), layout

    def forward(self, batch: dict) -> tuple[Tensor, dict]:
        y, layout = self.inputs(batch)
        losses = diffusion_loss(
            self.model,
            batch["latents"][batch["rows"]],
            y,
            layout,
            batch["noise"],
            batch["levels"],
            batch["layout"].view(-1, 1, 1, 1),
        )
        high = (batch["levels"] > 0.6).float()
        numbers = {
            "loss": losses.mean(),
            "high_noise": (losses * high).sum() / high.sum().clamp(min=1),
            "low_noise": (losses * (1 - high)).sum() / (1 - high).sum().clamp(min=1),
        }
        return losses.mean(), {name: value.detach() for name, value in numbers.items()}


class DiffusionStage:
    """Episodes from the pool; `batch_size` rows of the loss a process and step; settings: `DiffusionSettings`.

    A stage of another kind of model replaces the attributes below, and `more`.
    """

    objective = DiffusionObjective
    build_model = staticmethod(build_model)
    check_start = staticmethod(check_start)
    freeze_unused = staticmethod(freeze_unused)

    def __init__(self, config: RunConfig) -> None:
        torch.manual_seed(config.seed)
        self.config, self.settings = config, stage_settings(config)
        settings = self.settings
        mixture = Mixture.open(config.data, settings.more_data)
        self.library = mixture.library
        check_styles(mixture, settings.members)
        self.groups = groups_of_batch(config.batch_size, settings)
        model = first_model(settings, self.build_model, self.check_start)
        self.vae = model.vae.eval().requires_grad_(False)
        # The VAE is no part of what is trained and saved at every step.
        model.vae = None
        self.freeze_unused(model)
        # The light way: a low-rank change of the UNet's attention is all that is trained.
        self.lora = add_lora(model, settings.lora_rank) if settings.lora_rank else None
        self.module = self.objective(model).to(memory_format=torch.channels_last)
        # What is computed with beside `module`.
        self.frozen = (self.vae,)
        latents = latents_digest(self.vae)
        self.identity = {"vae's latents": latents}
        factor = vae_scale_factor(self.vae.config)
        if self.library.size % factor:
            raise ContextDiffusionError(
                f"{self.library.folder} has pictures of {self.library.size} pixels, which the VAE cannot take: make "
                f"them with a --size that is a multiple of {factor}"
            )
        size = self.library.size // factor
        self.pool = EpisodePool(
            Path(settings.pool or Path(config.out) / "pool"),
            mixture,
            settings.pool_groups,
            {name: share for name, share in asdict(settings.shares).items() if share is not None},
            config.seed if settings.pool_seed is None else settings.pool_seed,
            self._encode,
            (model.unet.config.in_channels, size, size),
            latents,
        )

    def prepare(self, rank: int, world: int) -> None:
        """Fill the pool; every process does its share."""
        self.pool.fill(rank, world)

    @torch.no_grad()
    def _encode(self, images: Tensor) -> Tensor:
        parameter = next(self.vae.parameters())
        return encode_images(self.vae, images.to(parameter)).cpu()

    def batch(self, step: int, rank: int, world: int) -> dict:
        rng = np.random.default_rng(batch_seed(self.config.seed, step, rank))
        generator = torch.Generator().manual_seed(batch_seed(self.config.seed, step, rank, 1))
        settings, pool = self.settings, self.pool
        rows_total, members_each = self.config.batch_size, settings.members
        images, latents, captions, kinds = [], [], [], []
        for group in rng.choice(pool.groups, size=self.groups, replace=False):
            members = self._members(rng, pool.distinct(group))
            images.append(pool.pictures("images", group, members))
            latents.append(pool.latents(group, members))
            other = rng.random(members_each) < settings.other_query
            usual, others = (pool.pictures(name, group, members) for name in ("queries", "other_queries"))
            kinds.append((usual, others, torch.from_numpy(other).view(-1, 1, 1, 1)))
            texts = pool.captions(group)
            captions += [str(rng.choice(texts[member])) for member in members]
        rows = torch.arange(len(captions)).repeat_interleave(settings.repeats)
        # Row 0 of the texts is the null text.
        ids = self.module.model.tokenizer(
            ["", *captions], padding="max_length", max_length=77, truncation=True, return_tensors="pt"
        ).input_ids
        dropped = torch.rand(rows_total, generator=generator) < settings.text_dropout
        latents = torch.cat(latents)
        usual, others, other = (torch.cat(parts) for parts in zip(*kinds, strict=True))
        batch = {
            "rows": rows,
            "images": torch.cat(images),
            "queries": torch.where(other, others, usual).contiguous(memory_format=torch.channels_last),
            "latents": latents,
            "ids": ids,
            "text": torch.where(dropped, 0, rows + 1),
            "context": context_matrix(rows, members_each, generator, settings.context_dropout, settings.largest_k),
            "layout": (torch.rand(rows_total, generator=generator) >= settings.query_dropout).float(),
            "noise": torch.randn(rows_total, *latents.shape[1:], generator=generator),
            "levels": noise_levels(rows_total, generator, settings.noise_mean, settings.noise_uniform),
        }
        # Drawn last, so that everything else is the same for every kind of model.
        return batch | self.more(generator, usual, others, other)

    def more(self, generator: torch.Generator, usual: Tensor, others: Tensor, other: Tensor) -> dict[str, Tensor]:
        """What else a kind of model takes of a batch.

        Args:
            generator: of the batch.
            usual: each picture's query, (U, 3, H, W).
            others: its other query.
            other: which of the two the batch has, (U, 1, 1, 1).
        """
        return {}

    def _members(self, rng: np.random.Generator, distinct: int = GROUP_SIZE) -> np.ndarray:
        """Some of a group, all different: runs of one subgroup (see `draw_keys`) in a share of the draws, else any."""
        count = self.settings.members
        if rng.random() < self.settings.related:
            return count * int(rng.integers(GROUP_SIZE // count)) + np.arange(count)
        return rng.choice(distinct, size=count, replace=False)

    @contextmanager
    def _whole(self) -> Iterator[ContextDiffusion]:
        """Within it the model has its VAE."""
        model = self.module.model
        model.vae = self.vae
        try:
            yield model
        finally:
            model.vae = None

    def sample(self) -> Tensor | None:
        """Held-out emoji, plain and in held-out style transforms, under right, wrong and no context.

        None for a model that predicts noise or v: only the pipeline samples those.
        """
        if self.module.model.schedule["prediction_type"] != "flow":
            return None
        with self._whole() as model:
            return preview_grid(model, self.library)

    def finish(self, out: Path) -> None:
        """Write the whole model in fp16; of a LoRA, the LoRA alone."""
        info = self.settings.info
        path = out / f"{info.get('name', 'model')}.safetensors"
        if self.lora:
            metadata = {f"modelspec.{key}": str(info[key]) for key in ("title", "author", "license") if key in info}
            save_lora(path, {layer: (change.up, change.down) for layer, change in self.lora.items()}, metadata)
            return
        with self._whole() as model:
            save_checkpoint(model, path, dtype=torch.float16)


def groups_of_batch(batch_size: int, settings: DiffusionSettings) -> int:
    """How many of the pool's groups the rows of a batch are of.

    Raises:
        ContextDiffusionError: no whole number of them, or more than the pool has.
    """
    rows = settings.members * settings.repeats
    if batch_size % rows:
        raise ContextDiffusionError(
            f"batch_size is {batch_size}: give a multiple of {rows} ({settings.members} members of a group, "
            f"{settings.repeats} repeats)"
        )
    if batch_size // rows > settings.pool_groups:
        raise ContextDiffusionError(
            f"[diffusion] pool_groups is {settings.pool_groups} and a batch is of {batch_size // rows} groups: give at "
            "least as many"
        )
    return batch_size // rows


def check_styles(mixture: Mixture, members: int) -> None:
    """Refuse styles with fewer training pictures than a batch takes of a group, all of them different.

    Raises:
        ContextDiffusionError: there is one.
    """
    for library in mixture:
        for style, keys in library.train_keys.items():
            if len(keys) < members:
                raise ContextDiffusionError(
                    f"{library.folder} has {len(keys)} pictures of {style} to train on and [diffusion] members is "
                    f"{members}: give it more pictures, or members = 4"
                )
