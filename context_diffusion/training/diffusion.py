"""Stage `diffusion`: UNet, layout encoder, projector and the CLIP encoders together, on in-context episodes."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ..checkpoint import load_checkpoint, save_checkpoint
from ..data.library import EmojiLibrary
from ..errors import ContextDiffusionError
from ..latents import encode_images
from ..layout import pick_rows
from ..model import ContextDiffusion
from ..tokenizer import tokenizer_from_json
from ..visual_context import ContextProjector, clip_preprocess, image_tokens
from .config import RunConfig
from .context import row_contexts
from .episodes import context_matrix, draw_examples
from .grow import attention_of, with_attention
from .loop import batch_seed
from .objective import diffusion_loss, noise_levels
from .pool import GROUP_SIZE, EpisodePool
from .preview import preview_grid
from .vae import load_vae
from .variants import build_variant, check_variant, freeze_unused

MEMBERS = 4


def new_unet(settings: dict, latent_channels: int, cross_attention_dim: int) -> nn.Module:
    """A UNet of ComfyUI's limits: one layer a block, groups of 32, heads of one width."""
    from diffusers import UNet2DConditionModel

    channels = tuple(settings.get("channels", (64, 128, 128)))
    attention = settings.get("attention", (False, True, True))
    head_channels = settings.get("head_channels", 32)
    down = tuple("CrossAttnDownBlock2D" if here else "DownBlock2D" for here in attention)
    up = tuple("CrossAttnUpBlock2D" if here else "UpBlock2D" for here in reversed(attention))
    return UNet2DConditionModel(
        sample_size=settings.get("sample_size", 16),
        in_channels=latent_channels,
        out_channels=latent_channels,
        block_out_channels=channels,
        layers_per_block=1,
        down_block_types=down,
        up_block_types=up,
        cross_attention_dim=cross_attention_dim,
        # diffusers calls it attention_head_dim and means the number of heads.
        attention_head_dim=tuple(width // head_channels for width in channels),
    )


def new_model(settings: dict, latent_channels: int, clip: Path) -> ContextDiffusion:
    """A fresh model around the CLIP stage's encoders; the layout encoder is the UNet's encoder's copy."""
    from transformers import CLIPTextModel, CLIPVisionModel

    try:
        text_encoder = CLIPTextModel.from_pretrained(clip / "text_encoder", local_files_only=True)
        image_encoder = CLIPVisionModel.from_pretrained(clip / "image_encoder", local_files_only=True)
        tokenizer = tokenizer_from_json((clip / "tokenizer.json").read_text())
    except OSError as error:
        raise ContextDiffusionError(f"[diffusion] clip = {str(clip)!r}: run the clip stage first ({error})") from error
    unet = new_unet(settings, latent_channels, text_encoder.config.hidden_size)
    schedule = {"prediction_type": settings.get("prediction_type", "flow")}
    return _around(settings, unet, text_encoder, tokenizer, image_encoder, schedule)


def model_from_pretrained(settings: dict) -> ContextDiffusion:
    """A model with the UNet, encoders and VAE of another one; layout encoder and projector are new.

    As the paper starts from Stable Diffusion: what the context adds is learned by a UNet that draws already.
    """
    path = settings["pretrained"]
    start = load_checkpoint(path, dtype=torch.float32)
    missing = [name for name in ("vae", "text_encoder", "image_encoder") if getattr(start, name) is None]
    if missing:
        raise ContextDiffusionError(
            f"[diffusion] pretrained = {path!r} has no {', '.join(missing)}: give a whole model"
        )
    if start.variant.cross_attention == "decoupled":
        raise ContextDiffusionError(
            f"[diffusion] pretrained = {path!r} has decoupled cross-attention: start_from goes on"
        )
    model = _around(settings, start.unet, start.text_encoder, start.tokenizer, start.image_encoder, start.schedule)
    model.vae = load_vae(settings["vae"]) if settings.get("vae") else start.vae
    return model


def _around(
    settings: dict,
    unet: nn.Module,
    text_encoder: nn.Module,
    tokenizer: object,
    image_encoder: nn.Module,
    schedule: dict,
) -> ContextDiffusion:
    """The variant that the settings ask for, with a new layout encoder and a new projector."""
    parts = {
        "unet": unet,
        "projector": ContextProjector(image_encoder.config.hidden_size, text_encoder.config.hidden_size),
        "layout_encoder": new_layout_encoder(unet, settings.get("layout_attention")),
        "text_encoder": text_encoder,
        "tokenizer": tokenizer,
        "image_encoder": image_encoder,
        "schedule": schedule,
        "info": settings.get("info", {}),
    }
    return ContextDiffusion(**build_variant(parts, variant_settings(settings)))


def new_layout_encoder(unet: nn.Module, attention: Sequence[bool] | None = None) -> nn.Module:
    """A ControlNetModel that begins as a copy of the UNet's encoder.

    Args:
        unet: what is copied.
        attention: for each resolution, the finest first, whether the copy has attention; None for the UNet's own.

    Raises:
        ContextDiffusionError: another number of resolutions, or attention where the UNet has none to copy.
    """
    from diffusers import ControlNetModel

    copy = ControlNetModel.from_unet(unet)
    own = attention_of(unet)
    if attention is None or tuple(attention) == own:
        return copy
    if len(attention) != len(own) or any(here and not there for here, there in zip(attention, own, strict=True)):
        raise ContextDiffusionError(
            f"[diffusion] layout_attention is {list(attention)} and the UNet's attention is {list(own)}: the layout "
            "encoder is the UNet's copy and can only have less"
        )
    down = tuple("CrossAttnDownBlock2D" if here else "DownBlock2D" for here in attention)
    leaner = ControlNetModel.from_config(copy.config, down_block_types=down)
    leaner.load_state_dict(copy.state_dict(), strict=False)
    return leaner


def variant_settings(settings: dict) -> dict[str, str | None]:
    """What the config says of the ablations and the baseline; None where it is silent."""
    return {
        "aggregation": settings.get("aggregation"),
        "cross_attention": settings.get("cross_attention"),
        "context_hidden_state": settings.get("context_hidden_state"),
        "null_context": settings.get("null_context"),
        "layout": settings.get("layout"),
        "baseline": settings.get("baseline"),
    }


def _digest(module: nn.Module) -> str:
    """A short name for the module's weights."""
    digest = hashlib.sha256()
    for value in module.state_dict().values():
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

    Settings of [diffusion]: `vae` (folder of the vae stage) and `clip` (folder of the clip stage). Or `start_from`, a
    checkpoint to go on from; or `pretrained`, a checkpoint whose UNet and encoders a new model begins with; a `vae`
    beside either takes the place of the checkpoint's, `clip` is not read. `channels`, `attention` (a list; on from a
    checkpoint, resolutions that have none get it) and `layout_attention` (the layout encoder's, when it is new),
    `head_channels`; `repeats` (noise levels a target), `pool_groups`, `shares` (plain, transformed, reverse),
    `text_dropout`, `context_dropout`, `query_dropout`, `other_query` (share), `info`. `pool` is the folder of the
    episode pool, which runs on the same data, VAE, seed and shares may have in common. The ablations: `aggregation`,
    `cross_attention`, `context_hidden_state`, `null_context` (see `variants.Variant`), `layout` (controlnet,
    t2i_adapter, none) and `baseline` (none, prompt_diffusion). `context_dropout = 1` with `layout = "none"` trains text
    to image, with nothing behind the text in y.
    """

    def __init__(self, config: RunConfig) -> None:
        settings = config.settings
        torch.manual_seed(config.seed)
        self.config, self.settings = config, settings
        self.library = EmojiLibrary(config.data)
        self.repeats = settings.get("repeats", 4)
        if config.batch_size % (MEMBERS * self.repeats):
            raise ContextDiffusionError(
                f"batch_size is {config.batch_size}: give a multiple of {MEMBERS * self.repeats} "
                f"({MEMBERS} members of a group, {self.repeats} repeats)"
            )
        model = self._load_model()
        self.vae = model.vae.eval().requires_grad_(False)
        # The VAE is no part of what is trained and saved at every step.
        model.vae = None
        # The baseline's example encoder gets its gradients in every case.
        reads_context = settings.get("context_dropout", 0.12) < 1
        freeze_unused(model, reads_context)
        self.module = DiffusionObjective(model, reads_context).to(memory_format=torch.channels_last)
        size = self.library.size // 8
        self.pool = EpisodePool(
            Path(settings.get("pool") or Path(config.out) / "pool"),
            self.library,
            settings.get("pool_groups", 700),
            settings.get("shares", {"plain": 0.45, "transformed": 0.47, "reverse": 0.08}),
            config.seed,
            self._encode,
            (model.unet.config.in_channels, size, size),
            _digest(self.vae),
        )

    def prepare(self, rank: int, world: int) -> None:
        """Fill the pool; every process does its share."""
        self.pool.fill(rank, world)

    def _load_model(self) -> ContextDiffusion:
        settings = self.settings
        if settings.get("start_from") and settings.get("pretrained"):
            raise ContextDiffusionError(
                "[diffusion] start_from goes on with a model and pretrained begins a new one: give one of them"
            )
        if settings.get("start_from"):
            model = load_checkpoint(settings["start_from"], dtype=torch.float32)
            check_variant(model, variant_settings(settings))
            model.unet = with_attention(model.unet, settings.get("attention", attention_of(model.unet)))
            model.info.update(settings.get("info", {}))
            if settings.get("vae"):
                model.vae = load_vae(settings["vae"])
            return model
        if settings.get("pretrained"):
            return model_from_pretrained(settings)
        vae = load_vae(settings.get("vae", ""))
        model = new_model(settings, vae.config.latent_channels, Path(settings.get("clip", "")))
        model.vae = vae
        return model

    @torch.no_grad()
    def _encode(self, images: Tensor) -> Tensor:
        return encode_images(self.vae, images)

    def batch(self, step: int, rank: int, world: int) -> dict:
        rng = np.random.default_rng(batch_seed(self.config.seed, step, rank))
        generator = torch.Generator().manual_seed(batch_seed(self.config.seed, step, rank, 1))
        settings, pool = self.settings, self.pool
        rows_total = self.config.batch_size
        groups = rows_total // (MEMBERS * self.repeats)
        images, queries, latents, captions, kinds = [], [], [], [], []
        for group in rng.choice(pool.groups, size=groups, replace=False):
            members = self._members(rng)
            images.append(pool.pictures("images", group, members))
            latents.append(pool.latents(group, members))
            other = rng.random(MEMBERS) < settings.get("other_query", 0.35)
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
            "context": context_matrix(rows, MEMBERS, generator, settings.get("context_dropout", 0.12)),
            "layout": (torch.rand(rows_total, generator=generator) >= settings.get("query_dropout", 0.05)).float(),
            "noise": torch.randn(rows_total, *latents.shape[1:], generator=generator),
            "levels": noise_levels(rows_total, generator),
        }
        if self.module.model.example_encoder is not None:
            # Drawn last, so that everything else is as without the baseline.
            examples = draw_examples(unique, MEMBERS, generator)
            usual, others, other = (torch.cat(parts) for parts in zip(*kinds, strict=True))
            # The example's query is of the kind that the target's query is of.
            batch["examples"] = examples
            batch["example_queries"] = torch.where(other, others[examples], usual[examples])
        return batch

    def _members(self, rng: np.random.Generator) -> np.ndarray:
        """Four of a group: often a run of one subgroup (see `draw_keys`), else any."""
        if rng.random() < 0.6:
            return MEMBERS * int(rng.integers(GROUP_SIZE // MEMBERS)) + np.arange(MEMBERS)
        return rng.choice(GROUP_SIZE, size=MEMBERS, replace=False)

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

    def sample(self) -> Tensor:
        """Held-out emoji, plain and in held-out style transforms, under right, wrong and no context."""
        return preview_grid(self._whole(), self.library)

    def finish(self, out: Path) -> None:
        """Write the whole model in fp16."""
        name = self.settings.get("info", {}).get("name", "model")
        save_checkpoint(self._whole(), out / f"{name}.safetensors", dtype=torch.float16)
