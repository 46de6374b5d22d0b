"""Models for the parity tests: the bundled one, and random ones of other shapes within the native limits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from context_diffusion.checkpoint.read import load_checkpoint
from context_diffusion.checkpoint.write import save_checkpoint
from context_diffusion.model.context_diffusion import ContextDiffusion
from context_diffusion.pretrained import bundled_model_path
from tests.core.tiny import TEXT_WIDTH, taesd_vae, tiny_model

from .prompt import NodeRef, Prompt
from .server import Server

BUNDLED = "emoji-128 (bundled)"


def epsilon_model() -> ContextDiffusion:
    """Predicts noise, attends everywhere, four heads; a KL autoencoder."""
    return tiny_model(seed=1)


def velocity_model() -> ContextDiffusion:
    """Predicts v, attends on some levels, two blocks and up to two layers each, linear projections, heads of one width.

    Its schedule ends without signal; its KL autoencoder has eight channels, no convolutions around them and a shift.
    """
    from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel

    model = tiny_model(
        seed=2, prediction_type="v_prediction", beta_schedule="linear", beta_end=0.02, rescale_betas_zero_snr=True
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        unet = UNet2DConditionModel(
            sample_size=8,
            in_channels=8,
            out_channels=8,
            block_out_channels=(32, 64, 96),
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D", "CrossAttnUpBlock2D"),
            layers_per_block=2,
            transformer_layers_per_block=[1, 1, 2],
            cross_attention_dim=TEXT_WIDTH,
            attention_head_dim=[2, 4, 6],
            use_linear_projection=True,
            upcast_attention=True,
        )
        layout = ControlNetModel.from_unet(unet)
        for block in [*layout.controlnet_down_blocks, layout.controlnet_mid_block]:
            torch.nn.init.normal_(block.weight, std=0.1)
        torch.nn.init.normal_(layout.controlnet_cond_embedding.conv_out.weight, std=0.1)
        vae = AutoencoderKL(
            sample_size=64,
            latent_channels=8,
            block_out_channels=(32, 32, 64, 64),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
            use_quant_conv=False,
            use_post_quant_conv=False,
            scaling_factor=0.4,
            shift_factor=0.1,
        )
    model.unet, model.layout_encoder, model.vae = unet, layout, vae
    return model.eval().requires_grad_(False)


def flow_model() -> ContextDiffusion:
    """Rectified flow of another size than the bundled one, attention on every level; a tiny autoencoder."""
    model = tiny_model(seed=4, prediction_type="flow")
    model.vae = taesd_vae().eval().requires_grad_(False)
    return model


MADE: dict[str, Callable[[], ContextDiffusion]] = {
    "epsilon": epsilon_model,
    "velocity": velocity_model,
    "flow": flow_model,
}
NAMES = ("bundled", *MADE)


def model_file(name: str, folder: Path) -> Path:
    """The file of one of `NAMES`, made in `folder` if need be."""
    if name == "bundled":
        return bundled_model_path()
    file = folder / f"{name}.safetensors"
    return file if file.exists() else save_checkpoint(MADE[name](), file)


class Native:
    """One model in a server and in the core.

    Attributes:
        server: runs the native objects.
        core: the diffusers and transformers modules, fp32.
    """

    def __init__(self, server: Server, name: str) -> None:
        self.server = server
        file = model_file(name, server.base / "models" / "context_diffusion")
        self.model_name = BUNDLED if name == "bundled" else file.name
        self.core = load_checkpoint(file, dtype=torch.float32)

    def graph(self) -> tuple[Prompt, NodeRef]:
        """A prompt with the loader in it."""
        prompt = Prompt()
        return prompt, prompt.add("ContextDiffusionLoader", model_name=self.model_name)


def relative(got: torch.Tensor, expected: torch.Tensor) -> float:
    """Norm of the difference over the norm; the shapes must be the same."""
    assert got.shape == expected.shape, (got.shape, expected.shape)
    return ((got.float() - expected).norm() / expected.norm()).item()
