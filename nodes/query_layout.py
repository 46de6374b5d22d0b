"""The query image: the layout encoder follows its map."""

from __future__ import annotations

from comfy_api.latest import io

from .category import CATEGORY
from .layout_map import MAP_TOOLTIP, MAPS, layout_map, map_size_input


class ContextDiffusionApplyQueryLayout(io.ComfyNode):
    """The query q: its map into every branch, so that guidance never steers away from the layout."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ContextDiffusionApplyQueryLayout",
            display_name="Apply Query Layout",
            category=CATEGORY,
            description="Makes a map of the query image and lets the layout encoder follow it. It is Apply ControlNet "
            "with the map built in and with the third conditioning of the Context Diffusion Sampler.",
            search_aliases=[
                "context diffusion",
                "query image",
                "layout",
                "controlnet",
                "apply controlnet",
                "canny",
                "soft edge",
                "structure",
                "edges",
            ],
            # The conditionings in the order of the outputs: the host bypasses a node by the place of its sockets. It
            # puts required ones before optional ones, so that what follows context_only is optional too.
            inputs=[
                io.Conditioning.Input("positive", tooltip="positive of Combine Text and Visual Context."),
                io.Conditioning.Input(
                    "context_only", optional=True, tooltip="context_only of Combine Text and Visual Context."
                ),
                io.Conditioning.Input(
                    "negative", optional=True, tooltip="negative of Combine Text and Visual Context. Always needed."
                ),
                io.ControlNet.Input(
                    "control_net",
                    optional=True,
                    tooltip="The layout encoder: CONTROL_NET of Load Context Diffusion, or a ControlNet for the model. "
                    "Always needed.",
                ),
                io.Image.Input(
                    "image",
                    optional=True,
                    tooltip="The query: the image whose layout to follow, or a map of it. Always needed.",
                ),
                io.Combo.Input("map", options=list(MAPS), default="soft edge", tooltip=MAP_TOOLTIP),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.0,
                    max=10.0,
                    step=0.01,
                    tooltip="How closely the layout is followed. 0 is exactly as without this node.",
                ),
                io.Float.Input(
                    "start_percent",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.001,
                    advanced=True,
                    tooltip="Share of the sampling from which on the layout is followed.",
                ),
                io.Float.Input(
                    "end_percent",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.001,
                    advanced=True,
                    tooltip="Share of the sampling until which the layout is followed. Not after the start: never.",
                ),
                io.Vae.Input(
                    "vae", optional=True, tooltip="Only for control models that read latents (SD3, Flux and the like)."
                ),
                map_size_input("the size that the layout encoder was trained at, else the image's own"),
            ],
            outputs=[
                io.Conditioning.Output("positive", tooltip="positive with the layout."),
                io.Conditioning.Output(
                    "context_only", tooltip="context_only with the layout; empty when none is connected."
                ),
                io.Conditioning.Output("negative", tooltip="negative with the layout."),
                io.Image.Output(
                    "map",
                    tooltip="The map for the layout encoder, which sees its middle, in the proportions of the latent.",
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        positive,
        map,
        strength,
        start_percent,
        end_percent,
        context_only=None,
        negative=None,
        control_net=None,
        image=None,
        vae=None,
        map_size=0,
    ) -> io.NodeOutput:
        from .checks import check_conditioning, check_present
        from .fits import check_control_net

        branches = {"positive": positive, "context_only": context_only, "negative": negative}
        connected = {name: branch for name, branch in branches.items() if branch is not None or name != "context_only"}
        for name, branch in connected.items():
            check_conditioning(branch, name)
        check_control_net(control_net, connected, vae)
        check_present(image, "image", "connect the query, with Load Image for example")
        if not map_size and map != "none":
            # Only our layout encoders know it.
            map_size = getattr(getattr(control_net, "control_model", None), "map_size", 0)
        query_map = layout_map(image, map, map_size)
        if strength != 0 and start_percent < end_percent:
            connected = _apply(connected, control_net, query_map, strength, (start_percent, end_percent), vae)
        return io.NodeOutput(connected["positive"], connected.get("context_only"), connected["negative"], query_map)


def _apply(branches, control_net, image, strength, span, vae):
    """The control model behind whatever control models the entries have already.

    Entries with the same history share one copy: the host runs only those in one model call.
    """
    copies = {}

    def with_control(options):
        previous = options.get("control")
        if previous not in copies:
            control = control_net.copy().set_cond_hint(image.movedim(-1, 1), strength, span, vae=vae)
            copies[previous] = control.set_previous_controlnet(previous)
        return {**options, "control": copies[previous], "control_apply_to_uncond": False}

    return {name: [[tokens, with_control(options)] for tokens, options in branch] for name, branch in branches.items()}


NODES = [ContextDiffusionApplyQueryLayout]
