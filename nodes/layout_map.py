"""The map of an image."""

from __future__ import annotations

from comfy_api.latest import io

from ..context_diffusion import choices
from .category import CATEGORY

# What the list shows, and the core's name for it.
MAPS = {label: name for name, label in choices.MAPS.items()}
MAP_TOOLTIP = (
    "What the image is reduced to. none: it is a map already; canny: thin lines; soft edge: grey edges; segmentation: "
    "flat regions; depth and normal: of the silhouette, blown up; scribble: thick lines."
)


def map_size_input(automatic: str) -> io.Int.Input:
    """The input `map_size`; `automatic` says what 0 means."""
    return io.Int.Input(
        "map_size",
        default=0,
        min=0,
        max=8192,
        step=8,
        optional=True,
        advanced=True,
        tooltip=f"Shorter side of the map in pixels: best the size of the image to be made, since lines are so many "
        f"pixels wide. 0: {automatic}.",
    )


class ContextDiffusionLayoutMap(io.ComfyNode):
    """A map alone."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ContextDiffusionLayoutMap",
            display_name="Layout Map",
            category=CATEGORY,
            description="Makes a map of each image: to look at it, to give it to another ControlNet node, or as a "
            "context image when the task is to turn an image into a map.",
            search_aliases=[
                "context diffusion",
                "preprocessor",
                "canny",
                "soft edge",
                "hed",
                "segmentation",
                "depth",
                "normal",
                "scribble",
                "edges",
                "lineart",
            ],
            inputs=[
                io.Image.Input("image", tooltip="One image or a batch."),
                io.Combo.Input("map", options=list(MAPS), default="soft edge", tooltip=MAP_TOOLTIP),
                map_size_input("the image's own size"),
            ],
            outputs=[io.Image.Output("map", tooltip="The maps, one for each image.")],
        )

    @classmethod
    def execute(cls, image, map, map_size=0) -> io.NodeOutput:
        return io.NodeOutput(layout_map(image, map, map_size))


def layout_map(image, name, size):
    """IMAGE -> the map as an IMAGE (B, H, W, 3), its shorter side at `size` unless that is 0."""
    from ..context_diffusion.errors import ContextDiffusionError
    from ..context_diffusion.images import fit_image
    from ..context_diffusion.maps import make_map
    from .checks import rgb_images

    image = rgb_images(image, "image")
    height, width = image.shape[1:3]
    if name == "none" and size in (0, min(height, width)):
        return image
    pixels = image.clamp(0, 1).movedim(-1, 1)
    if size:
        scale = size / min(height, width)
        pixels = fit_image(pixels, (round(height * scale), round(width * scale)), "stretch")
    try:
        return make_map(pixels, MAPS[name]).movedim(1, -1).contiguous()
    except ModuleNotFoundError as error:
        package = "scikit-image" if error.name == "skimage" else error.name
        raise ContextDiffusionError(
            f"the map {name} needs the Python package {package}, which this ComfyUI does not have: install it "
            f"(python -m pip install {package}) or choose another map"
        ) from error


NODES = [ContextDiffusionLayoutMap]
