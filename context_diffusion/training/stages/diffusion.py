"""Stage `diffusion`: UNet, layout encoder, projector and the CLIP encoders together, on in-context episodes."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ...checkpoint.write import save_checkpoint
from ...data.library import EmojiLibrary
from ...errors import ContextDiffusionError
from ...model.context_diffusion import ContextDiffusion
from ...model.latents import encode_images
from ...model.layout import pick_rows
from ...model.process import diffusion_loss
from ...model.visual_context import clip_preprocess, image_tokens
from ..begin.first_model import first_model
from ..begin.variants import freeze_unused
from ..config import RunConfig
from ..episodes.context import row_contexts
from ..episodes.groups import LARGEST_K, context_matrix, draw_examples
from ..episodes.pool import GROUP_SIZE, EpisodePool
from ..noise_levels import NOISE_MEAN, NOISE_UNIFORM, noise_levels
from ..run.loop import batch_seed
from ..run.preview import preview_grid

# Pictures of a group in a batch, where nothing else is asked for.
MEMBERS = 4
# How often they are whole runs of one subgroup.
RELATED = 0.6


# What of an autoencoder has no part in the latents that it makes.
DECODING = ("decoder.", "post_quant_conv.")


def latents_digest(vae: nn.Module) -> str:
    """A short name for all of an autoencoder that its latents depend on; another decoder leaves it the same."""
    digest = hashlib.sha256(repr((vae.config.scaling_factor, vae.config.get("shift_factor"))).encode())
    for name, value in vae.state_dict().items():
        if not name.startswith(DECODING):
            digest.update(value.float().contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


class DiffusionObjective(nn.Module):
    """Encoders and denoiser in one forward pass: each picture is encoded once and serves many rows.

    Args:
        model: f and its encoders.
        reads_context: false for y = h^c alone, text to image.
    """

    def __init__(self, model: ContextDiffusion, reads_context: bool = True) -> None:
        super().__init__()
        self.model, self.reads_context = model, reads_context

    def forward(self, batch: dict) -> tuple[Tensor, dict]:
        model = self.model
        rows = batch["rows"]
        y = model.text_encoder(batch["ids"]).last_hidden_state[batch["text"]]
        features = None
        if model.layout_encoder is not None:
            features = pick_rows(model.encode_query(batch["queries"]), rows)
        if model.example_encoder is None and self.reads_context:
            pixels = clip_preprocess(batch["images"], model.image_encoder.config.image_size)
            tokens = image_tokens(model.image_encoder, pixels, model.variant.context_hidden_state)
            y = model.condition(y, row_contexts(model, tokens, batch["context"]))
        elif model.example_encoder is not None:
            # The baseline: its context is one example pair, which joins the query's features.
            pairs = model.example_encoder(batch["example_queries"], batch["images"][batch["examples"]])
            features = features + pairs[rows] * (batch["context"] > 0).any(1).view(-1, 1, 1, 1)
        losses = diffusion_loss(
            model,
            batch["latents"][rows],
            y,
            features,
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
    """Episodes from the pool; `batch_size` rows of the loss a process and step.

    Settings of [diffusion], in the order of `settings.SETTINGS`:

    What it begins with: `vae` (folder of the vae stage) and `clip` (folder of the clip stage). Or `start_from`, a
    checkpoint to go on from; or `pretrained`, a checkpoint whose UNet and encoders a new model begins with, and with
    `keep_layout` its ControlNet too; a `vae` beside either takes the place of the checkpoint's, `clip` is not read.
    `prediction_type`.

    The UNet: `channels`, `attention` (a list; on from a checkpoint, resolutions that have none get it) and
    `layout_attention` (the layout encoder's, when it is new), `head_channels`, `sample_size`.

    Episodes: `repeats` (noise levels a target), `members` (pictures of a group in a batch, each other's context: 4, 8
    or 16), `largest_k` (most context images of a row, fewer than `members`), `related` (share of the draws that take
    whole runs of one subgroup, see `draw_keys`; the others take any of a group). `pool` is the folder of the episode
    pool, which runs on the same data, VAE, shares and `pool_seed` (the run's seed) may have in common; `pool_groups`,
    `shares` (plain, transformed, reverse). `icons` is the folder of another data set, which `icon_share` of the groups
    are drawn from. `text_dropout`, `context_dropout`, `query_dropout`, `other_query` (share).

    Noise levels: `noise_mean` (where they gather; above 0 is high noise) and `noise_uniform` (share drawn evenly), see
    `noise_levels`.

    The ablations: `aggregation`, `cross_attention`, `context_hidden_state`, `null_context` (see `variants.Variant`),
    `layout` (controlnet, t2i_adapter, none) and `baseline` (none, prompt_diffusion). `context_dropout = 1` with
    `layout = "none"` trains text to image, with nothing behind the text in y.

    `info`: what the checkpoint says of itself.
    """

    def __init__(self, config: RunConfig) -> None:
        settings = config.settings
        torch.manual_seed(config.seed)
        self.config, self.settings = config, settings
        self.library = EmojiLibrary(config.data)
        self.repeats = settings.get("repeats", 4)
        self.members = settings.get("members", MEMBERS)
        self.largest_k = settings.get("largest_k", LARGEST_K)
        self.noise = _noise(settings)
        self.related = settings.get("related", RELATED)
        _check_episodes(self.members, self.largest_k, self.related)
        if config.batch_size % (self.members * self.repeats):
            raise ContextDiffusionError(
                f"batch_size is {config.batch_size}: give a multiple of {self.members * self.repeats} "
                f"({self.members} members of a group, {self.repeats} repeats)"
            )
        model = first_model(settings)
        self.vae = model.vae.eval().requires_grad_(False)
        # The VAE is no part of what is trained and saved at every step.
        model.vae = None
        # The baseline's example encoder gets its gradients in every case.
        reads_context = settings.get("context_dropout", 0.12) < 1
        freeze_unused(model, reads_context)
        self.module = DiffusionObjective(model, reads_context).to(memory_format=torch.channels_last)
        # What is computed with beside `module`.
        self.frozen = (self.vae,)
        size = self.library.size // 8
        groups, drawn = settings.get("pool_groups", 700), config.batch_size // (self.members * self.repeats)
        if drawn > groups:
            raise ContextDiffusionError(
                f"[diffusion] pool_groups is {groups} and a batch is of {drawn} groups: give at least as many"
            )
        latents = latents_digest(self.vae)
        self.identity = {"vae's latents": latents}
        self.pool = EpisodePool(
            Path(settings.get("pool") or Path(config.out) / "pool"),
            self.library,
            groups,
            settings.get("shares", {"plain": 0.45, "transformed": 0.47, "reverse": 0.08}),
            settings.get("pool_seed", config.seed),
            self._encode,
            (model.unet.config.in_channels, size, size),
            latents,
            *_icons(settings, self.library.size),
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
        rows_total = self.config.batch_size
        groups = rows_total // (self.members * self.repeats)
        images, queries, latents, captions, kinds = [], [], [], [], []
        for group in rng.choice(pool.groups, size=groups, replace=False):
            members = self._members(rng)
            images.append(pool.pictures("images", group, members))
            latents.append(pool.latents(group, members))
            other = rng.random(self.members) < settings.get("other_query", 0.35)
            usual, others = (pool.pictures(name, group, members) for name in ("queries", "other_queries"))
            other = torch.from_numpy(other).view(-1, 1, 1, 1)
            queries.append(torch.where(other, others, usual))
            kinds.append((usual, others, other))
            texts = pool.captions(group)
            captions += [str(rng.choice(texts[member])) for member in members]
        unique = len(captions)
        rows = torch.arange(unique).repeat_interleave(self.repeats)
        # Row 0 of the texts is the null text.
        ids = self.module.model.tokenizer(
            ["", *captions], padding="max_length", max_length=77, truncation=True, return_tensors="pt"
        ).input_ids
        dropped = torch.rand(rows_total, generator=generator) < settings.get("text_dropout", 0.45)
        latents = torch.cat(latents)
        batch = {
            "rows": rows,
            "images": torch.cat(images),
            "queries": torch.cat(queries).contiguous(memory_format=torch.channels_last),
            "latents": latents,
            "ids": ids,
            "text": torch.where(dropped, 0, rows + 1),
            "context": context_matrix(
                rows, self.members, generator, settings.get("context_dropout", 0.12), self.largest_k
            ),
            "layout": (torch.rand(rows_total, generator=generator) >= settings.get("query_dropout", 0.05)).float(),
            "noise": torch.randn(rows_total, *latents.shape[1:], generator=generator),
            "levels": noise_levels(rows_total, generator, *self.noise),
        }
        if self.module.model.example_encoder is not None:
            # Drawn last, so that everything else is as without the baseline.
            examples = draw_examples(unique, self.members, generator)
            usual, others, other = (torch.cat(parts) for parts in zip(*kinds, strict=True))
            # The example's query is of the kind that the target's query is of.
            batch["examples"] = examples
            batch["example_queries"] = torch.where(other, others[examples], usual[examples])
        return batch

    def _members(self, rng: np.random.Generator) -> np.ndarray:
        """Some of a group: whole runs of one subgroup (see `draw_keys`) in a share of the draws, else any."""
        if rng.random() < self.related:
            return self.members * int(rng.integers(GROUP_SIZE // self.members)) + np.arange(self.members)
        return rng.choice(GROUP_SIZE, size=self.members, replace=False)

    def _whole(self) -> ContextDiffusion:
        """The model with its VAE."""
        model = self.module.model
        return ContextDiffusion(
            model.unet,
            model.projector,
            layout_encoder=model.layout_encoder,
            example_encoder=model.example_encoder,
            vae=self.vae,
            text_encoder=model.text_encoder,
            tokenizer=model.tokenizer,
            image_encoder=model.image_encoder,
            schedule=model.schedule,
            info=model.info,
            variant=model.variant,
        )

    def sample(self) -> Tensor | None:
        """Held-out emoji, plain and in held-out style transforms, under right, wrong and no context.

        None for a model that predicts noise or v: only the pipeline samples those.
        """
        if self.module.model.schedule["prediction_type"] != "flow":
            return None
        return preview_grid(self._whole(), self.library)

    def finish(self, out: Path) -> None:
        """Write the whole model in fp16."""
        name = self.settings.get("info", {}).get("name", "model")
        save_checkpoint(self._whole(), out / f"{name}.safetensors", dtype=torch.float16)


def _icons(settings: dict, size: int) -> tuple[EmojiLibrary | None, float]:
    """The icons' data set and their share."""
    folder, share = settings.get("icons"), settings.get("icon_share", 0.0)
    if not folder:
        if share:
            raise ContextDiffusionError(f"[diffusion] icon_share is {share!r} and icons names no data set: give both")
        return None, 0.0
    if not 0 < share <= 1:
        raise ContextDiffusionError(f"[diffusion] icons is {folder!r} and icon_share {share!r}: give a share up to 1")
    library = EmojiLibrary(folder)
    if library.size != size:
        raise ContextDiffusionError(
            f"[diffusion] the icons in {folder} are {library.size} pixels and the emoji {size}: make both of one size"
        )
    return library, share


def _noise(settings: dict) -> tuple[float, float]:
    """`mean` and `uniform` of the noise levels."""
    mean, uniform = settings.get("noise_mean", NOISE_MEAN), settings.get("noise_uniform", NOISE_UNIFORM)
    if not isinstance(mean, int | float):
        raise ContextDiffusionError(f"[diffusion] noise_mean is {mean!r}: give a number, 0 for the middle")
    if not isinstance(uniform, int | float) or not 0 <= uniform <= 1:
        raise ContextDiffusionError(f"[diffusion] noise_uniform is {uniform!r}: give a share, 0 to 1")
    return mean, uniform


def _check_episodes(members: int, largest_k: int, related: float) -> None:
    if members not in (4, 8, 16):
        raise ContextDiffusionError(f"[diffusion] members is {members!r}: give 4, 8 or 16 of a group's {GROUP_SIZE}")
    if not isinstance(largest_k, int) or not 1 <= largest_k < members:
        raise ContextDiffusionError(
            f"[diffusion] largest_k is {largest_k!r} with {members} members of a group: a context is drawn from the "
            f"others, give 1 to {members - 1}"
        )
    if not isinstance(related, (int, float)) or not 0 <= related <= 1:
        raise ContextDiffusionError(f"[diffusion] related is {related!r}: give a share, 0 to 1")
