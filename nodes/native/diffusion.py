"""The UNet as the host's MODEL, the layout encoder as its CONTROL_NET."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import comfy.cldm.cldm
import comfy.controlnet
import comfy.latent_formats
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.supported_models_base
import comfy.utils
import torch
from torch import Tensor

from ...context_diffusion.checkpoint.stored import StoredModel
from ...context_diffusion.errors import ContextDiffusionError
from .save import WholeModel
from .weights import check_weights, in_own_dtypes

_TYPES = {
    "epsilon": comfy.model_base.ModelType.EPS,
    "v_prediction": comfy.model_base.ModelType.V_PREDICTION,
    "flow": comfy.model_base.ModelType.FLOW,
}
# diffusers' names for schedules of betas -> the host's.
_SCHEDULES = {"scaled_linear": "linear", "linear": "sqrt_linear", "squaredcos_cap_v2": "cosine"}


class ModelConfig(comfy.supported_models_base.BASE):
    """What the host's list of known models has for each of them, made from a checkpoint's own config.

    Args:
        unet_config: the arguments of the host's UNetModel.
        schedule: as `ContextDiffusion.schedule`.
        latents: the latent format.
        whole: what the host's Save nodes write.
    """

    # The base class has the heads of another model here, and writes them over the UNet's.
    unet_extra_config = {}
    # Stable Diffusion 1.5's. Our UNets are of its kind, of its width or narrower.
    memory_usage_factor = 1.0

    def __init__(
        self,
        unet_config: dict[str, Any],
        schedule: dict[str, Any],
        latents: comfy.latent_formats.LatentFormat,
        whole: WholeModel,
    ) -> None:
        super().__init__(unet_config)
        self.latent_format = latents
        # The host asks for the other parts' names only where it has them, and lays them over the UNet's.
        self.process_unet_state_dict_for_saving = whole.with_unet
        self.process_clip_state_dict_for_saving = whole.text_encoder
        self.process_clip_vision_state_dict_for_saving = whole.image_encoder
        self.process_vae_state_dict_for_saving = whole.vae
        self.prediction = _TYPES[schedule["prediction_type"]]
        if schedule["prediction_type"] == "flow":
            # t = 1000 sigma, as the checkpoints define it, whatever the number of timesteps.
            self.sampling_settings = {"shift": 1.0, "multiplier": 1000}
        else:
            self.sampling_settings = {
                "beta_schedule": _SCHEDULES[schedule["beta_schedule"]],
                "linear_start": schedule["beta_start"],
                "linear_end": schedule["beta_end"],
                "timesteps": schedule["num_train_timesteps"],
                "zsnr": schedule["rescale_betas_zero_snr"],
            }

    def model_type(self, state_dict: dict[str, Tensor], prefix: str = "") -> comfy.model_base.ModelType:
        return self.prediction

    def inpaint_model(self) -> bool:
        # The base class takes any UNet with more than four input channels for one that sees a mask.
        return False


def build_model(
    stored: StoredModel, latents: comfy.latent_formats.LatentFormat, disable_dynamic: bool = False
) -> comfy.model_patcher.ModelPatcher:
    """The UNet in the host's patcher.

    Args:
        stored: with the weights of the unet.
        latents: the format of its latents.
        disable_dynamic: without the newer hosts' paging of weights.
    """
    config = unet_config(stored.path, "unet", stored.configs["unet"])
    names = comfy.utils.unet_to_diffusers(config)
    weights = _rename(stored.path, "unet", stored.weights["unet"], names)
    whole = WholeModel(stored.path, {names[key]: key for key in stored.weights["unet"]})
    model_config = ModelConfig(config, stored.schedule, latents, whole)
    supported = list(model_config.supported_inference_dtypes)
    device, offload = comfy.model_management.get_torch_device(), comfy.model_management.unet_offload_device()
    dtype, cast = _dtypes(weights, supported, device)
    model_config.set_inference_dtype(dtype, cast)
    model = model_config.get_model(weights, "")
    check_weights(stored.path, "unet", weights, model.diffusion_model)
    name = "ModelPatcher" if disable_dynamic else "CoreModelPatcher"
    patcher = getattr(comfy.model_patcher, name)(model, load_device=device, offload_device=offload)
    if not comfy.model_management.is_device_cpu(offload):
        model.to(offload)
    weights = in_own_dtypes(model.diffusion_model, weights)
    model.load_model_weights(weights, "", assign=patcher.is_dynamic())
    return patcher


def build_control_net(stored: StoredModel) -> comfy.controlnet.ControlNet | None:
    """The layout encoder as a ControlNet that reads the same text as the UNet; None when the file has none."""
    if "layout_encoder" not in stored.configs:
        return None
    own = stored.weights["layout_encoder"]
    config = unet_config(stored.path, "layout_encoder", stored.configs["layout_encoder"])
    names = {**comfy.utils.unet_to_diffusers(config), **_layout_names(own)}
    weights = _rename(stored.path, "layout_encoder", own, names)
    device = comfy.model_management.get_torch_device()
    dtype, cast = _dtypes(weights, [torch.float16, torch.bfloat16, torch.float32], device)
    del config["out_channels"]
    control = comfy.cldm.cldm.ControlNet(
        **config,
        hint_channels=3,
        dtype=dtype,
        device=comfy.model_management.unet_offload_device(),
        operations=comfy.ops.pick_operations(dtype, cast),
    )
    control.requires_grad_(False)
    control.eval()
    check_weights(stored.path, "layout_encoder", weights, control)
    control.load_state_dict(in_own_dtypes(control, weights))
    control.map_size = _map_size(stored.configs["unet"].get("sample_size"))
    return comfy.controlnet.ControlNet(control, load_device=device, manual_cast_dtype=cast)


def _map_size(sample_size: int | list[int] | None) -> int:
    """Shorter side of the maps that the layout encoder learned from, in pixels; 0: not known.

    For Apply Query Layout: lines are so many pixels wide, and a map scaled down afterwards loses them.
    """
    sides = sample_size if isinstance(sample_size, list) else [sample_size or 0]
    return 8 * min(sides)  # the hint's way to the size of the latents


def unet_config(path: Path, part: str, config: dict[str, Any]) -> dict[str, Any]:
    """The host's words for the config of a UNet2DConditionModel or a ControlNetModel within the native limits.

    Raises:
        ContextDiffusionError: an entry is missing or of the wrong kind.
    """
    try:
        channels = config["block_out_channels"]
        blocks = config["layers_per_block"]
        blocks = blocks if isinstance(blocks, list) else [blocks] * len(channels)
        layers = config["transformer_layers_per_block"]
        layers = layers if isinstance(layers, list) else [layers] * len(channels)
        attention = ["CrossAttn" in name for name in config["down_block_types"]]
        depths = [depth if attends else 0 for depth, attends in zip(layers, attention, strict=True)]
        return {
            "image_size": 32,  # no network reads it
            "in_channels": config["in_channels"],
            "out_channels": config.get("out_channels"),
            "model_channels": channels[0],
            "channel_mult": [each // channels[0] for each in channels],
            "num_res_blocks": blocks,
            "transformer_depth": [depth for depth, n in zip(depths, blocks, strict=True) for _ in range(n)],
            "transformer_depth_middle": layers[-1],
            "transformer_depth_output": [depth for depth, n in zip(depths, blocks, strict=True) for _ in range(n + 1)],
            "context_dim": config["cross_attention_dim"],
            "use_spatial_transformer": True,
            "use_linear_in_transformer": config["use_linear_projection"],
            "attn_precision": torch.float32 if config.get("upcast_attention") else None,
            "legacy": False,
            "adm_in_channels": None,
            **_heads(config, channels),
        }
    except (KeyError, TypeError, ValueError, IndexError, ZeroDivisionError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise ContextDiffusionError(
            f"{path} has a {part} config that cannot be used ({reason}): save it again"
        ) from error


def _heads(config: dict[str, Any], channels: list[int]) -> dict[str, int]:
    # diffusers calls the number of heads attention_head_dim.
    heads = config.get("num_attention_heads") or config["attention_head_dim"]
    if not isinstance(heads, list):
        return {"num_heads": heads, "num_head_channels": -1}
    if len(set(heads)) == 1:
        return {"num_heads": heads[0], "num_head_channels": -1}
    return {"num_heads": -1, "num_head_channels": channels[0] // heads[0]}


def _layout_names(weights: dict[str, Tensor]) -> dict[str, str]:
    """diffusers' names of what a ControlNet has beside a UNet -> the host's."""
    names, last = {}, 1
    for key in weights:
        module, _, leaf = key.rpartition(".")
        kind, _, number = module.rpartition(".")
        if kind == "controlnet_down_blocks":
            names[key] = f"zero_convs.{number}.0.{leaf}"
        elif module == "controlnet_mid_block":
            names[key] = f"middle_block_out.0.{leaf}"
        elif module == "controlnet_cond_embedding.conv_in":
            names[key] = f"input_hint_block.0.{leaf}"
        elif kind == "controlnet_cond_embedding.blocks":
            # A convolution and an activation each, behind the first pair.
            names[key] = f"input_hint_block.{2 * int(number) + 2}.{leaf}"
            last = max(last, int(number) + 2)
    for leaf in ("weight", "bias"):
        names[f"controlnet_cond_embedding.conv_out.{leaf}"] = f"input_hint_block.{2 * last}.{leaf}"
    return names


def _rename(path: Path, part: str, weights: dict[str, Tensor], names: dict[str, str]) -> dict[str, Tensor]:
    strange = sorted(set(weights) - set(names))
    if strange:
        raise ContextDiffusionError(
            f"{path}: the {part} has {len(strange)} weights that ComfyUI's network has no place for "
            f"({strange[0]} among them): save it again"
        )
    return {names[key]: tensor for key, tensor in weights.items()}


def _dtypes(
    weights: dict[str, Tensor], supported: list[torch.dtype], device: torch.device
) -> tuple[torch.dtype, torch.dtype | None]:
    """The dtype that the host keeps these weights in, and the one that it computes in where that is another."""
    dtype = comfy.model_management.unet_dtype(
        model_params=comfy.utils.calculate_parameters(weights),
        supported_dtypes=supported,
        weight_dtype=comfy.utils.weight_dtype(weights),
    )
    return dtype, comfy.model_management.unet_manual_cast(dtype, device, supported)
