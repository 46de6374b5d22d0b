"""What a model must keep to so that the same file becomes ComfyUI's own MODEL, CLIP, VAE and the like.

ComfyUI's classes have these values built in: breaking one gives wrong images or a crash there, while
diffusers runs the model all the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from .native_vae import tiny_vae_limits
from .parts import describe_part, present_parts

if TYPE_CHECKING:
    from ..model.context_diffusion import ContextDiffusion

# Settings of the UNet and of the layout encoder that ComfyUI's classes have no other value for.
_FIXED = {
    "norm_num_groups": 32,
    "norm_eps": 1e-5,
    "act_fn": "silu",
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "center_input_sample": False,
    "downsample_padding": 1,
    "mid_block_scale_factor": 1,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "only_cross_attention": False,
    "mid_block_only_cross_attention": None,
    "dual_cross_attention": False,
    "class_embed_type": None,
    "num_class_embeds": None,
    "addition_embed_type": None,
    "encoder_hid_dim": None,
    "time_embedding_type": "positional",
    "time_embedding_dim": None,
    "time_embedding_act_fn": None,
    "time_cond_proj_dim": None,
    "timestep_post_act": None,
    "resnet_time_scale_shift": "default",
    "resnet_skip_time_act": False,
    "resnet_out_scale_factor": 1.0,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "attention_type": "default",
    "cross_attention_norm": None,
    "reverse_transformer_layers_per_block": None,
    # The layout encoder alone
    "conditioning_channels": 3,
    "controlnet_conditioning_channel_order": "rgb",
    "conditioning_embedding_out_channels": [16, 32, 96, 256],
    "global_pool_conditions": False,
}
_DOWN_BLOCKS = ("CrossAttnDownBlock2D", "DownBlock2D")
_UP_OF_DOWN = {"CrossAttnDownBlock2D": "CrossAttnUpBlock2D", "DownBlock2D": "UpBlock2D"}
_SCHEDULES = ("scaled_linear", "linear", "squaredcos_cap_v2")
_NATIVE_PARTS = ("unet", "projector", "layout_encoder", "vae", "text_encoder", "image_encoder")
_ACTIVATIONS = ("quick_gelu", "gelu", "gelu_pytorch_tanh")


def check_native_limits(model: ContextDiffusion) -> list[str]:
    """Every limit that the model breaks, one line each; empty when it becomes native ComfyUI objects."""
    configs = {name: describe_part(name, module) for name, module in present_parts(model).items()}
    tokenizer = model.tokenizer
    special = None if tokenizer is None else (tokenizer.pad_token, tokenizer.eos_token)
    return find_native_limits(configs, model.schedule, special, model.reading.changes)


def find_native_limits(
    configs: Mapping[str, Mapping[str, Any]],
    schedule: Mapping[str, Any],
    special_tokens: tuple[str, str] | None,
    variant: Mapping[str, str] | None = None,
) -> list[str]:
    """`check_native_limits` by what a checkpoint says of a model, before any of it is built.

    Args:
        configs: of the parts, as `describe_part` gives them.
        schedule: as `ContextDiffusion.schedule`.
        special_tokens: the tokenizer's padding and end of text, or None without one.
        variant: the `changes` of the model's reading.
    """
    limits = list(_schedule(schedule))
    for name in ("unet", "layout_encoder"):
        config = configs.get(name, {})
        if "class" in config:
            limits.append(f"{name}: is a {config['class']}, must be a ControlNetModel")
        elif config:
            limits += _diffusion(name, config)
    # The join is a setting of the encoding node.
    others = {name: value for name, value in (variant or {}).items() if name != "aggregation"}
    limits += [f"{name} is {value!r}, which ComfyUI has no place for" for name, value in others.items()]
    limits += [f"{name}: ComfyUI has no place for it" for name in configs if name not in _NATIVE_PARTS]
    if "vae" in configs:
        tiny = configs["vae"].get("class") == "AutoencoderTiny"
        limits += (tiny_vae_limits if tiny else _kl_vae)(configs["vae"])
    for name in ("text_encoder", "image_encoder"):
        if name in configs:
            limits += _clip(name, configs[name])
    if special_tokens is not None and special_tokens[0] != special_tokens[1]:
        limits.append(f"tokenizer: pads with {special_tokens[0]!r}, must pad with its end of text")
    return limits


def _schedule(schedule: Mapping[str, Any]) -> Iterator[str]:
    if schedule["prediction_type"] != "flow" and schedule["beta_schedule"] not in _SCHEDULES:
        yield f"schedule: beta_schedule is {schedule['beta_schedule']!r}, not one of {', '.join(_SCHEDULES)}"


def _diffusion(part: str, config: Mapping[str, Any]) -> Iterator[str]:
    for key, wanted in _FIXED.items():
        value = config.get(key, wanted)
        value = list(value) if isinstance(value, tuple) else value
        if value != wanted:
            yield f"{part}: {key} is {value!r}, must be {wanted!r}"
    channels = list(config["block_out_channels"])
    if any(each % channels[0] for each in channels):
        yield f"{part}: block_out_channels are {channels}, must be whole multiples of the first"
    if not _one(config["layers_per_block"]):
        yield f"{part}: layers_per_block is {config['layers_per_block']}, must be one number for all blocks"
    if not _one(config["cross_attention_dim"]):
        yield f"{part}: cross_attention_dim is {config['cross_attention_dim']}, must be one number"
    # diffusers calls the number of heads attention_head_dim. ComfyUI knows one number of heads, or one width.
    heads = config.get("num_attention_heads") or config["attention_head_dim"]
    if not _one(heads) and len({width / each for width, each in zip(channels, heads, strict=True)}) > 1:
        yield f"{part}: heads are {list(heads)} for channels {channels}, must be one number or of one width"
    odd = [name for name in config["down_block_types"] if name not in _DOWN_BLOCKS]
    if odd:
        yield f"{part}: down block {odd[0]}, must be one of {', '.join(_DOWN_BLOCKS)}"
    elif part == "unet":
        ups = [_UP_OF_DOWN[name] for name in reversed(config["down_block_types"])]
        if list(config["up_block_types"]) != ups:
            yield f"unet: up_block_types are {list(config['up_block_types'])}, must mirror the down blocks"


def _kl_vae(config: Mapping[str, Any]) -> Iterator[str]:
    channels = list(config["block_out_channels"])
    if len(channels) != 4:
        yield f"vae: {len(channels)} levels, must be 4"
    if any(each % channels[0] for each in channels):
        yield f"vae: block_out_channels are {channels}, must be whole multiples of the first"
    for key, wanted in (("norm_num_groups", 32), ("act_fn", "silu"), ("mid_block_add_attention", True)):
        if config.get(key, wanted) != wanted:
            yield f"vae: {key} is {config[key]!r}, must be {wanted!r}"
    if any(config.get(key) for key in ("latents_mean", "latents_std")):
        yield "vae: latents_mean and latents_std are set, must be none: use scaling_factor and shift_factor"


def _clip(part: str, config: Mapping[str, Any]) -> Iterator[str]:
    if config["hidden_act"] not in _ACTIVATIONS:
        yield f"{part}: hidden_act is {config['hidden_act']!r}, must be one of {', '.join(_ACTIVATIONS)}"
    if config["layer_norm_eps"] != 1e-5:
        yield f"{part}: layer_norm_eps is {config['layer_norm_eps']}, must be 1e-05"
    if part == "text_encoder" and config["max_position_embeddings"] != 77:
        yield f"text_encoder: {config['max_position_embeddings']} positions, must be 77"
    if part == "image_encoder" and config["num_channels"] != 3:
        yield f"image_encoder: {config['num_channels']} channels, must be 3"


def _one(value: Any) -> bool:
    """Whether a setting is one number, or the same number for every block."""
    return not isinstance(value, list | tuple) or len(set(map(str, value))) == 1
