"""A Context Diffusion model that starts from Stable Diffusion and CLIP, as the paper's does."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import ContextDiffusionError
from ..model.context_diffusion import DEFAULT_SCHEDULE, PREDICTION_TYPES, ContextDiffusion
from ..model.latents import vae_scale_factor
from ..model.visual_context import ContextProjector
from .native import check_native_limits
from .parts import file_key, file_keys, misfits

logger = logging.getLogger(__name__)

TRAINED_PARTS = ("unet", "layout_encoder", "projector")

# Inputs that a UNet may ask for and that y, q and t do not give (SDXL, class-conditional and unCLIP models).
_FOREIGN_INPUTS = ("addition_embed_type", "class_embed_type", "encoder_hid_dim_type", "time_cond_proj_dim")


def build_from_stable_diffusion(
    stable_diffusion: str | Path,
    clip: str | Path,
    *,
    variant: str | None = None,
    dtype: torch.dtype = torch.float32,
    info: dict[str, Any] | None = None,
) -> ContextDiffusion:
    """Start a model from folders on disk; nothing is downloaded and no pickle is opened.

    UNet, VAE, text encoder and tokenizer are Stable Diffusion's, the image encoder is CLIP's. The layout
    encoder copies the UNet's encoder and ends in zero convolutions: it changes nothing until it is trained.
    The projector is random and small (its tokens have about a tenth of the encoder's spread): context starts
    near the zeros that stand for no context, and still tells one image from another.

    The parts that the paper trains require gradients: the UNet (whose cross-attention has never seen an image
    token), the layout encoder and the projector. The VAE and both CLIP encoders are frozen, as in the paper.

    Args:
        stable_diffusion: a StableDiffusionPipeline folder (1.x or 2.x, with model_index.json).
        clip: a CLIPModel folder. Where it holds a tokenizer, that must be the pipeline's: then both encoders
            are of one family.
        variant: of the weight files, such as "fp16" for *.fp16.safetensors.
        dtype: of the weights; float32 is what training wants.
        info: entries for `ContextDiffusion.info`; title and resolution have defaults.

    Returns:
        The model in evaluation mode.

    Raises:
        ContextDiffusionError: a folder or a part is missing, has pickles only, is of another architecture, or
            does not fit the others.
    """
    import diffusers
    import transformers

    root, clip_root = _folder(stable_diffusion, "model_index.json"), _folder(clip, "config.json")
    unet = _load(diffusers.UNet2DConditionModel, root / "unet", variant)
    foreign = [name for name in _FOREIGN_INPUTS if unet.config.get(name) is not None]
    if foreign:
        raise ContextDiffusionError(
            f"{root} has a UNet with {foreign[0]} {unet.config[foreign[0]]!r}: give a 1.x or 2.x model"
        )
    vae = _load(_vae_class(root / "vae"), root / "vae", variant)
    text_encoder = _load(transformers.CLIPTextModel, root / "text_encoder", variant)
    tokenizer = _tokenizer(root / "tokenizer")
    image_encoder = _vision_tower(clip_root, variant)
    _same_tokenizer(tokenizer, root, clip_root)

    text_width, vision_width = unet.config.cross_attention_dim, image_encoder.config.hidden_size
    if not isinstance(text_width, int):
        raise ContextDiffusionError(f"{root} has a UNet with cross_attention_dim {text_width}: one number is needed")
    projector = ContextProjector(vision_width, text_width)
    nn.init.normal_(projector.linear.weight, std=0.1 / math.sqrt(vision_width))
    nn.init.zeros_(projector.linear.bias)

    defaults = {"title": f"Context Diffusion from {root.resolve().name}"}
    if isinstance(unet.config.sample_size, int):
        defaults["resolution"] = unet.config.sample_size * vae_scale_factor(vae.config)
    model = ContextDiffusion(
        unet,
        projector,
        layout_encoder=diffusers.ControlNetModel.from_unet(unet),
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        image_encoder=image_encoder,
        schedule=_schedule(root / "scheduler"),
        info={**defaults, **(info or {})},
    )
    problems = misfits(model)
    if problems:
        raise ContextDiffusionError(f"{root} and {clip_root} do not fit: {problems[0]}")
    limits = check_native_limits(model)
    if limits:
        logger.warning("%s will not load as native ComfyUI objects: %s", root.name, "; ".join(limits))
    return freeze_as_the_paper(model.to(dtype).eval())


def freeze_as_the_paper(model: ContextDiffusion) -> ContextDiffusion:
    """Let UNet, layout encoder and projector require gradients and nothing else; returns the model."""
    model.requires_grad_(False)
    for name in TRAINED_PARTS:
        if getattr(model, name) is not None:
            getattr(model, name).requires_grad_(True)
    return model


def _folder(path: str | Path, index: str) -> Path:
    path = Path(path)
    if not path.is_dir():
        raise ContextDiffusionError(f"{path} is not a folder: give one on disk, nothing is downloaded")
    if not (path / index).is_file():
        raise ContextDiffusionError(f"{path} has no {index}: give a folder that save_pretrained wrote")
    return path


def _load(maker: Any, folder: Path, variant: str | None) -> nn.Module:
    """One part by its library's `from_pretrained`, with every weight in the file and none made up."""
    _folder(folder, "config.json")
    if not any(folder.glob("*.safetensors")):
        pickles = [file.name for file in sorted(folder.iterdir()) if file.suffix in (".bin", ".pt", ".ckpt")]
        content = f"only {pickles[0]}, a pickle that could run any code" if pickles else "no weights"
        raise ContextDiffusionError(f"{folder} has {content}: .safetensors weights are needed")
    from safetensors import SafetensorError

    try:
        module, report = maker.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, variant=variant, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, TypeError, KeyError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise ContextDiffusionError(f"{folder} does not load as a {maker.__name__}: {reason}") from error
    # The libraries fill what a file lacks with random numbers, and go on.
    missing = sorted(key for key in report["missing_keys"] if not key.endswith("position_ids"))
    if missing:
        raise ContextDiffusionError(f"{folder} lacks {len(missing)} weights of a {maker.__name__}: {missing[0]} ...")
    return module


def _vae_class(folder: Path) -> Any:
    """AutoencoderTiny where the folder says so, else Stable Diffusion's own AutoencoderKL."""
    import diffusers

    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        config = None  # loading it says what is wrong
    tiny = isinstance(config, dict) and config.get("_class_name") == "AutoencoderTiny"
    return diffusers.AutoencoderTiny if tiny else diffusers.AutoencoderKL


def _vision_tower(folder: Path, variant: str | None) -> nn.Module:
    """The image encoder of a CLIPModel folder, up to its last hidden state."""
    import transformers

    kind = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
    if kind != "clip":
        raise ContextDiffusionError(f"{folder} holds a model of type {kind!r}: a CLIPModel folder is needed")
    tower = _load(transformers.CLIPModel, folder, variant).vision_model
    image_encoder = transformers.CLIPVisionModel(tower.config)
    weights = {file_key("image_encoder", key): value for key, value in tower.state_dict().items()}
    keys = file_keys("image_encoder", image_encoder)
    image_encoder.load_state_dict({own_key: weights[key] for key, own_key in keys.items()})
    return image_encoder


def _tokenizer(folder: Path) -> Any:
    from transformers import CLIPTokenizer

    if not (folder / "vocab.json").is_file() and not (folder / "tokenizer.json").is_file():
        raise ContextDiffusionError(f"{folder} has neither vocab.json nor tokenizer.json: a CLIPTokenizer is needed")
    try:
        return CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, TypeError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise ContextDiffusionError(f"{folder} does not load as a CLIPTokenizer: {reason}") from error


def _same_tokenizer(tokenizer: Any, root: Path, clip_root: Path) -> None:
    if not any((clip_root / name).is_file() for name in ("vocab.json", "tokenizer.json")):
        return
    other = _tokenizer(clip_root)
    if other.get_vocab() != tokenizer.get_vocab():
        raise ContextDiffusionError(
            f"{clip_root} has a tokenizer of {len(other)} tokens other than the {len(tokenizer)} of {root}: "
            "give the CLIP that the Stable Diffusion model was made with"
        )


def _schedule(folder: Path) -> dict[str, Any]:
    """The scheduler's config, with its class's defaults, as `ContextDiffusion.schedule`."""
    import diffusers

    file = _folder(folder, "scheduler_config.json") / "scheduler_config.json"
    try:
        name = json.loads(file.read_text(encoding="utf-8"))["_class_name"]
        config = getattr(diffusers, name).from_pretrained(folder, local_files_only=True).config
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ContextDiffusionError(f"{file} is not the config of a scheduler that diffusers has: {error}") from error
    if name.startswith("FlowMatch"):
        return {"prediction_type": "flow", "num_train_timesteps": config.num_train_timesteps}
    if config.get("trained_betas") is not None:
        raise ContextDiffusionError(f"{file} has betas of its own (trained_betas): a named beta_schedule is needed")
    schedule = {key: config.get(key, default) for key, default in DEFAULT_SCHEDULE.items()}
    if schedule["prediction_type"] not in PREDICTION_TYPES:
        raise ContextDiffusionError(
            f"{file} has prediction_type {schedule['prediction_type']!r}: use {', '.join(PREDICTION_TYPES)}"
        )
    return schedule


def _from_stable_diffusion(
    cls: type[ContextDiffusion], stable_diffusion: str | Path, clip: str | Path, **options: Any
) -> ContextDiffusion:
    """Start from a StableDiffusionPipeline folder and a CLIPModel folder, see `build_from_stable_diffusion`."""
    return build_from_stable_diffusion(stable_diffusion, clip, **options)


# `context_diffusion.ContextDiffusion` comes by way of this module: the model itself knows nothing of files.
ContextDiffusion.from_stable_diffusion = classmethod(_from_stable_diffusion)  # type: ignore[attr-defined]
