"""A Context Diffusion model with every part, small enough that a test makes one in a second."""

import torch

from context_diffusion.checkpoint.tokenizer import train_tokenizer
from context_diffusion.model.context_diffusion import ContextDiffusion
from context_diffusion.model.visual_context import ContextProjector

IMAGE_SIZE = 64  # pixels; latents are (4, 8, 8)
TEXT_WIDTH = 32
VISION_WIDTH = 48  # not the text's: a projector used the wrong way round must fail

CAPTIONS = [
    "full moon over our camp, East Greenland",
    "a red flag on a white tent, thick black outlines",
    "the moon's yellow face, flat colors",
    "camping under the full moon, line art",
    "a yellow star and a white moon, flat colors, thick outlines",
]


def tiny_tokenizer():
    """540 tokens, learned from `CAPTIONS`."""
    return train_tokenizer(CAPTIONS * 3, 540)


def tiny_unet(in_channels=4):
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=8,
        in_channels=in_channels,
        out_channels=in_channels,
        block_out_channels=(32, 64),
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=4,
        norm_num_groups=32,
    )


def tiny_vae():
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        sample_size=IMAGE_SIZE,
        latent_channels=4,
        block_out_channels=(32, 32, 32, 32),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        norm_num_groups=32,
    )


def taesd_vae(**settings):
    """Not a KL autoencoder: TAESD's shape with fewer blocks, and latents that need scaling."""
    from diffusers import AutoencoderTiny

    defaults = {
        "latent_channels": 4,
        "num_encoder_blocks": (1, 1, 1, 2),
        "num_decoder_blocks": (2, 2, 1, 1),
        "scaling_factor": 0.7,
    }
    return AutoencoderTiny(**{**defaults, **settings})


def text_config(tokenizer, width=TEXT_WIDTH):
    from transformers import CLIPTextConfig

    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=4,
        projection_dim=width,
        max_position_embeddings=77,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def vision_config(width=VISION_WIDTH):
    from transformers import CLIPVisionConfig

    return CLIPVisionConfig(
        image_size=32,
        patch_size=16,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=4,
        projection_dim=width,
    )


def tiny_model(seed=0, **schedule):
    """A model with all parts and random weights, in evaluation mode.

    The layout encoder's zero convolutions are random here, so that a query changes the prediction.

    Args:
        seed: of the weights; torch's own generator is left as it was.
        schedule: entries of `ContextDiffusion.schedule`, such as prediction_type="flow".
    """
    from diffusers import ControlNetModel
    from transformers import CLIPTextModel, CLIPVisionModel

    tokenizer = tiny_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet = tiny_unet()
        layout_encoder = ControlNetModel.from_unet(unet)
        for block in [*layout_encoder.controlnet_down_blocks, layout_encoder.controlnet_mid_block]:
            torch.nn.init.normal_(block.weight, std=0.1)
        torch.nn.init.normal_(layout_encoder.controlnet_cond_embedding.conv_out.weight, std=0.1)
        model = ContextDiffusion(
            unet,
            ContextProjector(VISION_WIDTH, TEXT_WIDTH),
            layout_encoder=layout_encoder,
            vae=tiny_vae(),
            text_encoder=CLIPTextModel(text_config(tokenizer)),
            tokenizer=tokenizer,
            image_encoder=CLIPVisionModel(vision_config()),
            schedule=schedule,
            info={
                "title": "tiny",
                "license": "CC0-1.0",
                "resolution": 64,
                "description": "random weights",
            },
        )
    return model.eval().requires_grad_(False)
