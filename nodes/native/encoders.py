"""The two CLIP transformers as the host's CLIP and CLIP_VISION, the projector as its STYLE_MODEL."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import comfy.clip_vision
import comfy.model_management
import comfy.ops
import comfy.sd
import comfy.sd1_clip
import comfy.supported_models_base
import comfy.utils
import folder_paths
import torch
from comfy.cli_args import args
from torch import Tensor

from ...context_diffusion.checkpoint.stored import StoredModel
from ...context_diffusion.checkpoint.style import encoder_mark
from ...context_diffusion.checkpoint.tokenizer import tokenizer_from_json
from ...context_diffusion.errors import ContextDiffusionError
from ...context_diffusion.model.visual_context import n_tokens
from .weights import check_weights, shapes_of

if TYPE_CHECKING:
    from transformers import CLIPTokenizer


def encoder_dtype(device: torch.device) -> torch.dtype:
    """What the weights of a text or image encoder are kept in.

    The host keeps encoders in fp16 on every device unless a flag says otherwise, and computes in fp32 with them. On a
    device that is no faster in fp16, a CPU above all, that rounds a model's fp32 weights (errors of 2e-3 in its
    output) and casts them anew in every layer, for nothing: there they stay in fp32. Everywhere else, and when the
    user has set a dtype, the host's choice stands.
    """
    chosen = comfy.model_management.text_encoder_dtype(device)
    if chosen == torch.float16 and not args.fp16_text_enc and not comfy.model_management.should_use_fp16(device):
        return torch.float32
    return chosen


def build_clip(stored: StoredModel, disable_dynamic: bool = False) -> comfy.sd.CLIP | None:
    """Text encoder and tokenizer in the host's CLIP; None when the file lacks one of them.

    Args:
        stored: with the weights of the text_encoder.
        disable_dynamic: without the newer hosts' paging of weights.
    """
    if "text_encoder" not in stored.configs or stored.tokenizer is None:
        return None
    config = {**stored.configs["text_encoder"], "model_type": "clip_text_model"}
    width = config["hidden_size"]
    try:
        own = tokenizer_from_json(stored.tokenizer)
    except ContextDiffusionError as error:
        raise ContextDiffusionError(f"{stored.path}: {error}") from error
    # The tokenizer's ids: Stable Diffusion 1.5's text encoder has others in its config, which nothing there reads.
    special = {"start": own.bos_token_id, "end": own.eos_token_id, "pad": own.eos_token_id}
    weights = dict(stored.weights["text_encoder"])
    # The host's network ends in a projection, which ours does not have.
    weights["text_projection.weight"] = torch.eye(width, dtype=comfy.utils.weight_dtype(weights))

    class TextEncoder(comfy.sd1_clip.SDClipModel):
        def __init__(self, device: Any = "cpu", dtype: Any = None, model_options: dict[str, Any] | None = None) -> None:
            super().__init__(
                device=device,
                dtype=dtype,
                textmodel_json_config=dict(config),
                special_tokens=special,
                return_projected_pooled=False,
                model_options=model_options or {},
            )
            # The host's network is made for a vocabulary of 49408, whatever its config says.
            rows = self.operations.Embedding(config["vocab_size"], width, dtype=dtype, device=device)
            self.transformer.set_input_embeddings(rows.requires_grad_(False))

    class TextModel(comfy.sd1_clip.SD1ClipModel):
        def __init__(self, device: Any = "cpu", dtype: Any = None, model_options: dict[str, Any] | None = None) -> None:
            super().__init__(device=device, dtype=dtype, model_options=model_options or {}, clip_model=TextEncoder)

    options = {"disable_dynamic": True} if disable_dynamic else {}
    with shapes_of(stored.path, "text_encoder"):
        clip = comfy.sd.CLIP(
            comfy.supported_models_base.ClipTarget(_tokenizer_class(own, width), TextModel),
            embedding_directory=folder_paths.get_folder_paths("embeddings"),
            parameters=comfy.utils.calculate_parameters(weights),
            state_dict=[weights],
            model_options={"dtype": encoder_dtype(comfy.model_management.text_encoder_device())},
            **options,
        )
    check_weights(stored.path, "text_encoder", weights, clip.cond_stage_model.clip_l.transformer)
    return clip


def build_clip_vision(stored: StoredModel) -> comfy.clip_vision.ClipVisionModel | None:
    """The image encoder as the host's CLIP vision model; None when the file has none."""
    if "image_encoder" not in stored.configs:
        return None
    config = {**stored.configs["image_encoder"], "model_type": "clip_vision_model"}
    # Without it the host leaves the pooled vector as it is. Ours has no projection.
    del config["projection_dim"]
    # Older hosts read the config from a file only.
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "config.json"
        file.write_text(json.dumps(config), encoding="utf-8")
        encoder = comfy.clip_vision.ClipVisionModel(str(file))
    dtype = encoder_dtype(encoder.load_device)
    if encoder.dtype != dtype:
        # The class asks the host alone. Its weights are not filled yet.
        encoder.model.to(dtype)
        encoder.dtype = dtype
    weights = stored.weights["image_encoder"]
    check_weights(stored.path, "image_encoder", weights, encoder.model)
    encoder.load_sd(weights)
    # What it encodes carries the mark along, as far as our own nodes make it.
    encoder.context_diffusion_encoder = encoder_mark(weights)
    return encoder


class ContextProjection(torch.nn.Module):
    """The projector as the network inside a STYLE_MODEL: visual tokens (1, N, d_v) -> (1, N, d_c).

    The host keeps style models where they are made and never moves them: the weights are cast to each input.

    Args:
        vision_width: d_v.
        text_width: d_c.
        n_tokens: N of one averaged visual context, None when the file does not say.
        encoder: the mark of the image encoder whose tokens it was trained on, None when the file has none.
    """

    def __init__(self, vision_width: int, text_width: int, n_tokens: int | None, encoder: str | None) -> None:
        super().__init__()
        self.vision_width, self.text_width, self.n_tokens = vision_width, text_width, n_tokens
        self.encoder = encoder
        self.linear = comfy.ops.manual_cast.Linear(vision_width, text_width, dtype=torch.float32)

    def forward(self, tokens: Tensor) -> Tensor:
        if tokens.shape[-1] != self.vision_width:
            raise ContextDiffusionError(
                f"this STYLE_MODEL takes image tokens {self.vision_width} wide and the CLIP_VISION_OUTPUT has "
                f"{tokens.shape[-1]}: encode the images with the CLIP_VISION of the same Load Context Diffusion node"
            )
        return self.linear(tokens)


def build_style_model(stored: StoredModel) -> comfy.sd.StyleModel:
    """The projector as a style model."""
    config, tokens, encoder = stored.configs["projector"], None, None
    if "image_encoder" in stored.configs:
        vision = stored.configs["image_encoder"]
        tokens = n_tokens(vision["image_size"], vision["patch_size"])
        encoder = encoder_mark(stored.weights["image_encoder"])
    module = ContextProjection(config["vision_width"], config["text_width"], tokens, encoder)
    check_weights(stored.path, "projector", stored.weights["projector"], module)
    module.load_state_dict(stored.weights["projector"])
    return comfy.sd.StyleModel(module.requires_grad_(False).eval())


def _tokenizer_class(own: CLIPTokenizer, width: int) -> type[comfy.sd1_clip.SD1Tokenizer]:
    """What makes the host's tokenizer, around the one in the checkpoint."""

    class Ready:
        """Stands for a class of tokenizers: the host asks it for one by the path of a folder."""

        @staticmethod
        def from_pretrained(path: str, **settings: Any) -> CLIPTokenizer:
            return own

    class TextTokenizer(comfy.sd1_clip.SDTokenizer):
        def __init__(self, embedding_directory: Any = None, tokenizer_data: dict[str, Any] | None = None) -> None:
            super().__init__(
                tokenizer_class=Ready,
                embedding_directory=embedding_directory,
                embedding_size=width,
                tokenizer_data=tokenizer_data or {},
            )

    class Tokenizer(comfy.sd1_clip.SD1Tokenizer):
        def __init__(self, embedding_directory: Any = None, tokenizer_data: dict[str, Any] | None = None) -> None:
            super().__init__(embedding_directory, tokenizer_data or {}, tokenizer=TextTokenizer)

    return Tokenizer
