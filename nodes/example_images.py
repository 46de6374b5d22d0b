"""Example inputs for a first run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from comfy_api.latest import io

from .category import CATEGORY

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor


class ContextDiffusionExampleImages(io.ComfyNode):
    """Inputs that come with the pack, so that the first run needs no file of one's own."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        from ..context_diffusion.pretrained.examples import load_examples

        examples = load_examples()
        titles = "; ".join(f"{name}: {example.title}" for name, example in examples.items())
        return io.Schema(
            node_id="ContextDiffusionExampleImages",
            display_name="Example Images",
            category=CATEGORY,
            description="Context images, a query image and a prompt to start with. Load Image nodes in its place bring "
            "your own.",
            search_aliases=[
                "context diffusion",
                "example",
                "sample images",
                "demo",
                "test image",
                "load image",
                "emoji",
                "first run",
            ],
            inputs=[
                io.Combo.Input(
                    "example", options=list(examples), default=next(iter(examples)), tooltip=f"Which set. {titles}."
                )
            ],
            outputs=[
                io.Image.Output(id="context_1", display_name="context_1", tooltip="The first context image."),
                io.Image.Output(id="context_2", display_name="context_2", tooltip="The second context image."),
                io.Image.Output(id="context_3", display_name="context_3", tooltip="The third context image."),
                io.Image.Output(
                    id="query", display_name="query", tooltip="The query image: what the new image is laid out after."
                ),
                io.String.Output(
                    id="prompt", display_name="prompt", tooltip="The prompt; empty for an example without one."
                ),
            ],
        )

    @classmethod
    def execute(cls, example: str) -> io.NodeOutput:
        from comfy_execution.graph_utils import ExecutionBlocker

        from ..context_diffusion.pretrained.examples import find_example

        chosen = find_example(example)
        if chosen.context:
            # Fewer than three: the last again. In a mean it only counts for more.
            last = len(chosen.context) - 1
            context = [_read_image(chosen.context[min(index, last)]) for index in range(3)]
        else:
            # A made-up image would steer the result: the node that wants one stops with this line.
            message = (
                f"the example {example!r} has no context images: choose another, or disconnect visual_context from "
                "Combine Text and Visual Context"
            )
            context = [ExecutionBlocker(message)] * 3
        if chosen.query is None:
            message = f"the example {example!r} has no query image: choose another, or leave Apply Query Layout out"
            query = ExecutionBlocker(message)
        else:
            query = _read_image(chosen.query)
        return io.NodeOutput(*context, query, chosen.prompt or "")


def _read_image(path: Path) -> Tensor:
    """An IMAGE (1, H, W, 3) in [0, 1], where the host keeps those."""
    import comfy.model_management

    from ..context_diffusion.images import load_image_as_tensor

    image = load_image_as_tensor(path).movedim(0, -1)[None].contiguous()
    return image.to(comfy.model_management.intermediate_device())


NODES = [ContextDiffusionExampleImages]
