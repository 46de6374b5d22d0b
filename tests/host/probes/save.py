"""Write what a connection carries to a safetensors file in the output folder."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

import folder_paths
import torch
from comfy_api.latest import io
from safetensors.torch import save_file


def flatten(value: object, name: str = "") -> dict[str, torch.Tensor]:
    """Tensors and numbers of nested dicts, lists and attribute objects, with dotted names."""
    if isinstance(value, torch.Tensor):
        # A copy of its own memory: safetensors refuses tensors that share theirs.
        return {name or "value": value.detach().cpu().clone().contiguous()}
    if isinstance(value, bool | int | float):
        return {name or "value": torch.tensor(value)}
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list | tuple):
        items = enumerate(value)
    elif value.__class__.__name__ == "Output":
        # A CLIP_VISION_OUTPUT.
        items = vars(value).items()
    else:
        return {}
    found: dict[str, torch.Tensor] = {}
    for key, item in items:
        found.update(flatten(item, f"{name}.{key}" if name else str(key)))
    return found


class ProbeSave(io.ComfyNode):
    """Any value: a LATENT's `samples`, an IMAGE's `value`, a CONDITIONING's `0.0` and `0.1.<name>` ..."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ProbeSave", category="probes", inputs=[io.AnyType.Input("value")], is_output_node=True
        )

    @classmethod
    def execute(cls, value: object) -> io.NodeOutput:
        name = f"probe-{uuid.uuid4().hex}.safetensors"
        save_file(flatten(value) or {"nothing": torch.zeros(0)}, Path(folder_paths.get_output_directory()) / name)
        return io.NodeOutput(ui={"file": [name]})


class ProbeTouch(io.ComfyNode):
    """Passes a value on, and makes a file look written to meanwhile."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ProbeTouch",
            category="probes",
            inputs=[io.AnyType.Input("value"), io.String.Input("path")],
            outputs=[io.AnyType.Output()],
        )

    @classmethod
    def execute(cls, value: object, path: str) -> io.NodeOutput:
        os.utime(path, ns=(1, 1))
        return io.NodeOutput(value)


class ProbeRaise(io.ComfyNode):
    """Raises."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ProbeRaise", category="probes", inputs=[io.String.Input("message")], is_output_node=True
        )

    @classmethod
    def execute(cls, message: str) -> io.NodeOutput:
        raise ValueError(message)


NODES = [ProbeSave, ProbeTouch, ProbeRaise]
