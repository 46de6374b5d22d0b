"""Where a graph begins: the model's file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from comfy_api.latest import io

from .category import CATEGORY
from .folders import BUNDLED, MODELS, fingerprint

if TYPE_CHECKING:
    from pathlib import Path

# Output, what a file calls the part, and what gives such an object otherwise.
_OUTPUTS = (
    ("MODEL", "diffusion model", "Load Diffusion Model"),
    ("CLIP", "text encoder", "Load CLIP, or Load Checkpoint"),
    ("VAE", "VAE", "Load VAE, or Load Checkpoint"),
    ("CLIP_VISION", "image encoder", "Load CLIP Vision"),
    ("STYLE_MODEL", "projector", "Load Style Model"),
    ("CONTROL_NET", "layout encoder", "Load ControlNet Model"),
)


class ContextDiffusionLoader(io.ComfyNode):
    """One file -> the six native objects (see `native.load_native`)."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ContextDiffusionLoader",
            display_name="Load Context Diffusion",
            category=CATEGORY,
            description="Loads a Context Diffusion model: one file with everything that a graph needs. All six outputs "
            "are ComfyUI's own kinds and work with its own nodes, and with LoRAs, ControlNets and other packs.",
            search_aliases=[
                "context diffusion",
                "load model",
                "checkpoint",
                "loader",
                "in-context",
                "visual context",
                "emoji",
            ],
            inputs=[
                io.Combo.Input(
                    "model_name",
                    options=_model_names(),
                    tooltip="The model that comes with the pack, or a .safetensors file in models/context_diffusion "
                    "(or in a context_diffusion folder of extra_model_paths.yaml), or one that Save Checkpoint wrote "
                    "with context_diffusion/ before its name.",
                )
            ],
            outputs=[
                io.Model.Output(
                    display_name="MODEL",
                    tooltip="The diffusion model, for Context Diffusion Sampler, KSampler or any other sampler.",
                ),
                io.Clip.Output(display_name="CLIP", tooltip="The text encoder, for CLIP Text Encode."),
                io.Vae.Output(display_name="VAE", tooltip="Between images and latents, for VAE Decode and VAE Encode."),
                io.ClipVision.Output(
                    display_name="CLIP_VISION", tooltip="The image encoder, for Encode Visual Context."
                ),
                io.StyleModel.Output(
                    display_name="STYLE_MODEL",
                    tooltip="From image tokens to text tokens, for Combine Text and Visual Context or Apply Style "
                    "Model.",
                ),
                io.ControlNet.Output(
                    display_name="CONTROL_NET",
                    tooltip="The layout encoder, for Apply Query Layout or Apply ControlNet.",
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, model_name: str | None) -> bool | str:
        names = _model_names()
        # None: another node gives the name, when it runs.
        if model_name is None or model_name in names:
            return True
        return (
            f"there is no model {model_name!r}: put the file in models/{MODELS} and refresh (key R), or choose one of "
            f"{', '.join(names)}"
        )

    @classmethod
    def fingerprint_inputs(cls, model_name: str | None) -> str:
        # A file that was replaced is loaded again.
        return fingerprint(_model_names() if model_name is None else [model_name], _model_path)

    @classmethod
    def execute(cls, model_name: str) -> io.NodeOutput:
        from comfy_execution.graph_utils import ExecutionBlocker

        from .native.load import load_native

        native = load_native(_model_path(model_name))
        parts = (
            native.model,
            native.clip,
            native.vae,
            native.clip_vision,
            native.style_model,
            native.control_net,
        )
        results = []
        for part, (socket, what, instead) in zip(parts, _OUTPUTS, strict=True):
            message = f"{model_name} has no {what}: take the {socket} of {instead} in place of Load Context Diffusion's"
            results.append(ExecutionBlocker(message) if part is None else part)
        return io.NodeOutput(*results)


def _model_names() -> list[str]:
    """What the list of models shows: the bundled ones first."""
    import folder_paths

    from ..context_diffusion.pretrained import DEFAULT_MODEL, bundled_models

    bundled = sorted(bundled_models(), key=lambda name: (name != DEFAULT_MODEL, name))
    return [name + BUNDLED for name in bundled] + folder_paths.get_filename_list(MODELS)


def _model_path(model_name: str) -> Path:
    """The file behind an entry of the list.

    Raises:
        ContextDiffusionError: it is not there any more.
    """
    from pathlib import Path

    import folder_paths

    from ..context_diffusion.errors import ContextDiffusionError
    from ..context_diffusion.pretrained import bundled_model_path

    if model_name.endswith(BUNDLED):
        return bundled_model_path(model_name.removesuffix(BUNDLED))
    path = folder_paths.get_full_path(MODELS, model_name)
    if path is None:
        raise ContextDiffusionError(
            f"there is no model {model_name!r} in models/{MODELS}: put the file there, or choose another"
        )
    return Path(path)


NODES = [ContextDiffusionLoader]
