"""Small parts with random weights, and images and conditionings of every kind: inputs for the context nodes."""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path

import comfy.clip_vision
import comfy.sd
import comfy.text_encoders.flux
import torch
from comfy.nested_tensor import NestedTensor
from comfy_api.latest import io


def _fill(module: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Random weights: those of the host's classes are not even initialised."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator).mul(0.1).to(parameter.dtype)
    return module


class ProbeImage(io.ComfyNode):
    """Random images (batch, height, width, channels); or a mask, NaN, 8-bit values, channels first, half precision."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ProbeImage",
            category="probes",
            inputs=[
                io.Int.Input("seed"),
                io.Int.Input("batch"),
                io.Int.Input("height"),
                io.Int.Input("width"),
                io.Int.Input("channels", default=3),
                io.String.Input("kind", default="plain"),
            ],
            outputs=[io.Image.Output()],
        )

    @classmethod
    def execute(cls, seed: int, batch: int, height: int, width: int, channels: int, kind: str) -> io.NodeOutput:
        generator = torch.Generator().manual_seed(seed)
        small = torch.rand(batch, channels, 5, 7, generator=generator)
        if batch:
            small = torch.nn.functional.interpolate(small, size=(height, width), mode="bilinear")
        images = small.movedim(1, -1).contiguous()
        if kind == "mask":
            images = images[..., 0]
        elif kind == "nan":
            images[-1, 0, 0, 0] = float("nan")
        elif kind == "8 bit":
            images = images * 255
        elif kind == "half":
            images = images.half()
        elif kind == "channels first":
            images = images.movedim(-1, 1)
        return io.NodeOutput(images)


class ProbeClipVision(io.ComfyNode):
    """A CLIP_VISION of any width, of the plain kind or of SigLIP's (all hidden states)."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ProbeClipVision",
            category="probes",
            inputs=[
                io.Int.Input("width"),
                io.Int.Input("image_size", default=32),
                io.Boolean.Input("siglip", default=False),
                io.Float.Input("wait", default=0.0),
            ],
            outputs=[io.ClipVision.Output()],
        )

    @classmethod
    def execute(cls, width: int, image_size: int, siglip: bool, wait: float) -> io.NodeOutput:
        config = {
            "hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": 3, "num_attention_heads": 2,
            "image_size": image_size, "patch_size": 8, "num_channels": 3, "hidden_act": "quick_gelu",
            "model_type": "siglip_vision_model" if siglip else "clip_vision_model",
        }  # fmt: skip
        if not siglip:
            config["projection_dim"] = 6
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "config.json")
            path.write_text(json.dumps(config))
            model = comfy.clip_vision.ClipVisionModel(str(path))
        _fill(model.model, 1)
        encode = model.encode_image
        model.batches = []

        def noted(image: torch.Tensor, crop: bool = True) -> object:
            time.sleep(wait)
            model.batches.append(len(image))
            return encode(image, crop=crop)

        model.encode_image = noted
        return io.NodeOutput(model)


class ProbeBatches(io.ComfyNode):
    """How many images a ProbeClipVision was given in each call; `after` is only waited for."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ProbeBatches",
            category="probes",
            inputs=[io.ClipVision.Input("clip_vision"), io.AnyType.Input("after")],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, clip_vision: object, after: object) -> io.NodeOutput:
        return io.NodeOutput(ui={"batches": list(clip_vision.batches)})


class _Projector(torch.nn.Module):
    def __init__(self, vision_width: int, text_width: int) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(vision_width, text_width)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.linear(tokens)


class _Resampler(torch.nn.Module):
    """A stranger with a layer of our projector's name somewhere inside, of a width that is neither of its ends'."""

    def __init__(self, vision_width: int, text_width: int) -> None:
        super().__init__()
        self.first = torch.nn.Linear(vision_width, 10)
        self.block = _Projector(10, 12)
        self.last = torch.nn.Linear(12, text_width)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.last(self.block(self.first(tokens)))


class ProbeStyleModel(io.ComfyNode):
    """A STYLE_MODEL: like ours with `n_tokens` (-1: not known), a stranger's with 0, or the class for Flux Redux."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ProbeStyleModel",
            category="probes",
            inputs=[
                io.Int.Input("vision_width"),
                io.Int.Input("text_width"),
                io.Int.Input("n_tokens", default=0),
                io.Boolean.Input("redux", default=False),
                io.Boolean.Input("resampler", default=False, optional=True),
            ],
            outputs=[io.StyleModel.Output()],
        )

    @classmethod
    def execute(
        cls, vision_width: int, text_width: int, n_tokens: int, redux: bool, resampler: bool = False
    ) -> io.NodeOutput:
        if redux:
            module = comfy.ldm.flux.redux.ReduxImageEncoder(vision_width, text_width)
        elif resampler:
            module = _Resampler(vision_width, text_width)
        else:
            module = _Projector(vision_width, text_width)
        if n_tokens:
            module.n_tokens = None if n_tokens < 0 else n_tokens
        return io.NodeOutput(comfy.sd.StyleModel(_fill(module, 2)))


class ProbeText(io.ComfyNode):
    """Random text with the extras that other nodes put into an entry: a mask, pooled text, an area, hooks' stand-in."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ProbeText",
            category="probes",
            inputs=[
                io.Int.Input("seed"),
                io.Int.Input("width"),
                io.Int.Input("tokens", default=77),
                io.Int.Input("batch", default=1),
                io.String.Input("mask", default=""),
            ],
            outputs=[io.Conditioning.Output()],
        )

    @classmethod
    def execute(cls, seed: int, width: int, tokens: int, batch: int, mask: str) -> io.NodeOutput:
        generator = torch.Generator().manual_seed(seed)
        text = torch.randn(batch, tokens, width, generator=generator)
        options: dict = {"pooled_output": torch.randn(batch, width, generator=generator), "guidance": 3.5}
        if mask:
            bias = torch.randn(batch, tokens + 6, tokens + 6, generator=generator)
            options["attention_mask"] = bias > 0 if mask == "bool" else bias.half()
            options["attention_mask_img_shape"] = (2, 3)
        return io.NodeOutput([[text, options]])


class ProbeAny(io.ComfyNode):
    """A text through a socket of any kind, as other packs' nodes give the names of files."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ProbeAny",
            category="probes",
            inputs=[io.String.Input("value")],
            outputs=[io.AnyType.Output()],
        )

    @classmethod
    def execute(cls, value: str) -> io.NodeOutput:
        return io.NodeOutput(value)


class ProbeLatent(io.ComfyNode):
    """A random latent of any number of channels; with `frames`, of a video; or empty, of audio, nested, a list."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ProbeLatent",
            category="probes",
            inputs=[
                io.Int.Input("channels"),
                io.Int.Input("frames", default=0),
                io.String.Input("kind", default="", optional=True),
            ],
            outputs=[io.Latent.Output()],
        )

    @classmethod
    def execute(cls, channels: int, frames: int, kind: str = "") -> io.NodeOutput:
        shape = (1, channels, frames, 16, 16) if frames else (1, channels, 16, 16)
        samples = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        if kind == "empty":
            samples = torch.zeros_like(samples)
        elif kind == "nested":
            samples = NestedTensor([samples, samples])
        elif kind == "list":
            samples = [{"samples": samples}]
        return io.NodeOutput({"samples": samples, **({"type": kind} if kind == "audio" else {})})


class ProbeNothing(io.ComfyNode):
    """None for any socket, as loaders give it for a part that their file lacks."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        outputs = [io.ClipVision.Output(), io.StyleModel.Output(), io.ControlNet.Output(), io.ClipVisionOutput.Output()]
        return io.Schema(node_id="ProbeNothing", category="probes", outputs=outputs)

    @classmethod
    def execute(cls) -> io.NodeOutput:
        return io.NodeOutput(None, None, None, None)


NODES = [
    ProbeImage,
    ProbeClipVision,
    ProbeBatches,
    ProbeStyleModel,
    ProbeText,
    ProbeAny,
    ProbeLatent,
    ProbeNothing,
]
