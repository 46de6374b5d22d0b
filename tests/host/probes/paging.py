"""Our loader as it runs where the host pages weights: NVIDIA's DynamicVRAM, whose layers are empty until loaded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import comfy.memory_management
import comfy.model_management
import comfy.ops
from comfy_api.latest import io

import nodes


@contextmanager
def _empty_layers() -> Iterator[None]:
    """Linear layers and embeddings are made without weights, as main.py arranges it on a machine with such a card."""
    if hasattr(comfy.memory_management, "aimdo_enabled"):
        with mock.patch.object(comfy.memory_management, "aimdo_enabled", True):
            yield
    else:
        # Older hosts do so on Windows alone.
        with (
            mock.patch.object(comfy.model_management, "WINDOWS", True),
            mock.patch.object(comfy.ops, "enables_dynamic_vram", return_value=True),
        ):
            yield


class ProbePagedLoader(io.ComfyNode):
    """Load Context Diffusion there; on a CPU the host's patchers fall back to the plain ones."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        outputs = [io.Model, io.Clip, io.Vae, io.ClipVision, io.StyleModel, io.ControlNet]
        return io.Schema(
            node_id="ProbePagedLoader",
            category="probes",
            inputs=[io.String.Input("model_name")],
            outputs=[output.Output() for output in outputs],
        )

    @classmethod
    def execute(cls, model_name: str) -> io.NodeOutput:
        with _empty_layers():
            empty = comfy.ops.manual_cast.Linear(2, 3)
            if empty.weight is not None:
                raise RuntimeError("this host makes its layers another way: the probe shows nothing any more")
            return nodes.NODE_CLASS_MAPPINGS["ContextDiffusionLoader"].execute(model_name)


NODES = [ProbePagedLoader]
