"""Random adapters of the public formats, and UNets with the public layouts, all of them narrow."""

from __future__ import annotations

import torch
from torch import Tensor

TEXT_WIDTH, ENCODER_WIDTH = 64, 48


def tiny_unet(family: str = "sd15") -> torch.nn.Module:
    """Stable Diffusion 1.5's 16 or SDXL's 70 cross-attentions, a tenth as wide."""
    from diffusers import UNet2DConditionModel

    torch.manual_seed(1)
    common = {"sample_size": 8, "layers_per_block": 2, "cross_attention_dim": TEXT_WIDTH, "attention_head_dim": 2}
    if family == "sd15":
        return UNet2DConditionModel(block_out_channels=(32, 64, 64, 64), **common).eval()
    return UNet2DConditionModel(
        block_out_channels=(32, 64, 64),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2, 10),
        use_linear_projection=True,
        **common,
    ).eval()


def inner_widths(unet: torch.nn.Module) -> list[int]:
    """Of each cross-attention's keys, in the order in which diffusers walks a UNet: down, up, middle."""
    names = [name.removesuffix(".processor") for name in unet.attn_processors]
    return [unet.get_submodule(name).to_k.out_features for name in names if name.endswith("attn2")]


def tiny_file(projection: str, unet: torch.nn.Module, scale: float = 0.1) -> dict[str, Tensor]:
    """Tensors of an adapter file, named and shaped as the public ones are."""
    torch.manual_seed(2)
    d, e, w = TEXT_WIDTH, ENCODER_WIDTH, 128
    shapes: dict[str, tuple[int, ...]] = {
        "base": {"proj.weight": (4 * d, e), "proj.bias": (4 * d,), "norm.weight": (d,), "norm.bias": (d,)},
        "full": {
            "proj.0.weight": (e, e), "proj.0.bias": (e,), "proj.2.weight": (d, e), "proj.2.bias": (d,),
            "proj.3.weight": (d,), "proj.3.bias": (d,),
        },
        "plus": {
            "latents": (1, 16, w), "proj_in.weight": (w, e), "proj_in.bias": (w,), "proj_out.weight": (d, w),
            "proj_out.bias": (d,), "norm_out.weight": (d,), "norm_out.bias": (d,),
            **{
                f"layers.{layer}.{name}": shape
                for layer in range(4)
                for name, shape in {
                    "0.norm1.weight": (w,), "0.norm1.bias": (w,), "0.norm2.weight": (w,), "0.norm2.bias": (w,),
                    "0.to_q.weight": (128, w), "0.to_kv.weight": (256, w), "0.to_out.weight": (w, 128),
                    "1.0.weight": (w,), "1.0.bias": (w,), "1.1.weight": (4 * w, w), "1.3.weight": (w, 4 * w),
                }.items()
            },
        },
    }[projection]  # fmt: skip
    tensors = {f"image_proj.{name}": torch.randn(shape) * scale for name, shape in shapes.items()}
    for number, width in enumerate(inner_widths(unet)):
        for name in ("to_k_ip", "to_v_ip"):
            tensors[f"ip_adapter.{2 * number + 1}.{name}.weight"] = torch.randn(width, d) * scale
    return tensors


def features(projection: str, k: int = 1) -> Tensor:
    """What the projection reads of k images: pooled embeddings, or hidden states of 17 tokens."""
    torch.manual_seed(3)
    return torch.randn((k, ENCODER_WIDTH) if projection == "base" else (k, 17, ENCODER_WIDTH))


def shapes_of(tensors: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}
