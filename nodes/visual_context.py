"""Context images into one visual context, and visual contexts into files and back."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from comfy_api.latest import io, ui

from .category import CATEGORY
from .folders import BUNDLED, STYLES, file_state, fingerprint

if TYPE_CHECKING:
    from pathlib import Path

_MAX_IMAGES = 16
# How many images go through the encoder at once: enough to keep it busy, and memory does not grow with k.
_CHUNK = 8
# What the host's encoders give for each image, the first always; other nodes read the others.
_FEATURES = ("last_hidden_state", "penultimate_hidden_states", "image_embeds", "all_hidden_states", "mm_projected")

# What is noted of a visual context beside its features, and goes into a style file with them.
_NOTES = ("images", "aggregation", "encoder")


class ContextDiffusionEncodeVisualContext(io.ComfyNode):
    """k context images -> the joined tokens of the image encoder (section 3.2 of the paper)."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        # Optional, so that the node before the first socket can be bypassed like any other.
        image = io.Image.Input(
            "image",
            optional=True,
            tooltip="A context image. A batch counts as that many images; sizes may differ from socket to socket.",
        )
        return io.Schema(
            node_id="ContextDiffusionEncodeVisualContext",
            display_name="Encode Visual Context",
            category=CATEGORY,
            description="Encodes any number of context images and joins them into one visual context. With one image "
            "it gives what CLIP Vision Encode gives. Works with any CLIP vision model, so it averages references for "
            "Flux Redux and unCLIP as well.",
            search_aliases=[
                "context diffusion",
                "visual context",
                "context images",
                "in-context",
                "style images",
                "reference",
                "clip vision encode",
                "average images",
                "image prompt",
                "redux",
                "style mix",
            ],
            inputs=[
                io.ClipVision.Input(
                    "clip_vision", tooltip="The image encoder: CLIP_VISION of Load Context Diffusion, or any other."
                ),
                io.Autogrow.Input(
                    "images",
                    template=io.Autogrow.TemplatePrefix(image, prefix="image", min=1, max=_MAX_IMAGES),
                    tooltip="The context images: a new socket appears when the last one is connected.",
                ),
                io.String.Input(
                    "weights",
                    default="",
                    placeholder="1, 0.5",
                    tooltip='How much each connected input counts: one number an input, "1, 0.5" for two. A batch\'s '
                    "number holds for each of its images. Empty: all count the same.",
                ),
                io.Combo.Input(
                    "fit",
                    options=["crop", "pad", "stretch"],
                    default="crop",
                    tooltip="How an image that is not square becomes what the encoder takes. crop: its middle; pad: "
                    "all of it, on a ground of its border's average color; stretch: all of it, out of proportion. "
                    "The output seen shows the result.",
                ),
                io.Combo.Input(
                    "aggregation",
                    options=["mean", "sum", "concat"],
                    default="mean",
                    advanced=True,
                    tooltip="How the images are joined. mean: the weighted average (what the model was trained with); "
                    "sum: added up; concat: every image keeps its own tokens, and sampling slows down with each.",
                ),
            ],
            outputs=[
                io.ClipVisionOutput.Output(
                    "visual_context",
                    tooltip="For Combine Text and Visual Context, Save Visual Context, Apply Style Model or unCLIP.",
                ),
                io.Image.Output("seen", tooltip="Each image as the encoder saw it: what was cut off is not in it."),
            ],
        )

    @classmethod
    def execute(cls, clip_vision, images, weights, fit, aggregation) -> io.NodeOutput:
        import torch

        from .checks import check_present, rgb_images

        check_present(
            clip_vision, "clip_vision", "connect CLIP_VISION of Load Context Diffusion or of Load CLIP Vision"
        )
        connected = {name: image for name, image in images.items() if image is not None}
        # In half precision (--fp16-intermediates) resizing loses what the encoder learned from, and no CPU can do it.
        batches = [rgb_images(image, name).float() for name, image in connected.items()]
        each = _weight_of_each_image(weights, connected.keys(), [len(batch) for batch in batches])
        crop = fit != "stretch"
        fitted = [_pad(batch, clip_vision.image_size) if fit == "pad" else batch for batch in batches]
        output = _encode(clip_vision, fitted, each, aggregation, crop)
        seen = _same_size([_seen(clip_vision, batch, crop) for batch in fitted])
        return io.NodeOutput(output, torch.cat(seen))


def _weight_of_each_image(text, names, counts):
    """ "1, 0.5" and the number of images of each input -> a tensor (k,) with a weight for every image."""
    import torch

    from ..context_diffusion.errors import ContextDiffusionError
    from ..context_diffusion.visual_context import check_weights

    if not counts:
        raise ContextDiffusionError(
            "no context image: connect at least one image to Encode Visual Context, or end the bypass of one"
        )
    numbers = text.replace(",", " ").replace(";", " ").split()
    try:
        numbers = [float(number) for number in numbers]
    except ValueError as error:
        raise ContextDiffusionError(
            f'weights is {text!r}, expected one number an input with commas between, such as "1, 0.5", or nothing'
        ) from error
    if not numbers:
        return torch.ones(sum(counts))
    if len(numbers) != len(counts):
        raise ContextDiffusionError(
            f"weights has {len(numbers)} numbers ({text.strip()}) and {len(counts)} inputs are connected "
            f"({', '.join(names)}): give one number for each, or leave weights empty"
        )
    return check_weights(numbers, len(numbers)).repeat_interleave(torch.tensor(counts))


def _encode(clip_vision, batches, weights, aggregation, crop):
    """Batches (m, H, W, 3) -> the host's output object with every feature joined, (1, ...) or (k, ...) for concat."""
    import comfy.clip_vision
    import comfy.model_management
    import comfy.utils
    import torch

    from ..context_diffusion.errors import ContextDiffusionError
    from ..context_diffusion.visual_context import RunningJoin

    joins: dict[str, RunningJoin] = {}
    shapes: dict[str, torch.Size] = {}
    progress = comfy.utils.ProgressBar(len(weights))
    for chunk in (chunk for batch in batches for chunk in batch.split(_CHUNK)):
        comfy.model_management.throw_exception_if_processing_interrupted()
        encoded = clip_vision.encode_image(chunk, crop=crop)
        image_size = encoded.image_sizes[0]
        for name in _FEATURES:
            features = getattr(encoded, name, None)
            if not isinstance(features, torch.Tensor):
                continue
            if shapes.setdefault(name, features.shape[1:]) != features.shape[1:]:
                raise ContextDiffusionError(
                    "this CLIP_VISION gives another number of tokens for each shape of image, which cannot be joined: "
                    "set fit to pad, or connect images of one shape"
                )
            joins.setdefault(name, RunningJoin(weights, aggregation)).add(features)
        progress.update(len(chunk))

    output = comfy.clip_vision.Output()
    for name in _FEATURES:
        output[name] = joins[name].result() if name in joins else None
    if output["all_hidden_states"] is None:
        del output.all_hidden_states  # the host leaves it out as well
    output["image_sizes"] = [image_size] * len(output["last_hidden_state"])
    # For Save Visual Context and Combine; nothing else looks at it.
    output["context_diffusion"] = {"images": len(weights), "aggregation": aggregation}
    mark = getattr(clip_vision, "context_diffusion_encoder", None)
    if mark is not None:
        output["context_diffusion"]["encoder"] = mark
    return output


def _pad(images, size):
    """(m, H, W, 3) -> square images with nothing cut off, at the encoder's size where it has a fixed one."""
    import torch

    from ..context_diffusion.images import fit_image

    height, width = images.shape[1:3]
    if height == width:
        return images
    side = size if size > 0 else max(height, width)
    padded = []
    for image in images.clamp(0, 1):
        border = torch.cat([image[0], image[-1], image[1:-1, 0], image[1:-1, -1]])
        padded.append(fit_image(image.movedim(-1, 0), side, "pad", border.float().mean(0).tolist()).movedim(0, -1))
    return torch.stack(padded)


def _seen(clip_vision, images, crop):
    """What the encoder is shown, (m, H, W, 3) in [0, 1]: the host's own preparation, without the statistics."""
    import comfy.clip_model
    import comfy.model_management

    # Some nodes leave their images on the CPU even where the host keeps them on the GPU.
    images = images.to(comfy.model_management.intermediate_device())
    plain = {"size": clip_vision.image_size, "mean": [0.0] * 3, "std": [1.0] * 3, "crop": crop}
    if getattr(clip_vision, "model_type", "") == "siglip2_vision_model":
        config = clip_vision.config
        plain |= {"patch_size": config.get("patch_size", 16), "num_patches": config.get("num_patches", 256)}
        return comfy.clip_model.siglip2_preprocess(images, **plain).movedim(1, -1)
    return comfy.clip_model.clip_preprocess(images, **plain).movedim(1, -1)


def _same_size(batches):
    """Images of one size for one batch: only encoders without a fixed size give others, which get a white ground."""
    import torch

    height, width = (max(batch.shape[axis] for batch in batches) for axis in (1, 2))
    same = []
    for batch in batches:
        rows, columns = batch.shape[1:3]
        same.append(torch.nn.functional.pad(batch, (0, 0, 0, width - columns, 0, height - rows), value=1.0))
    return same


class _Saved:
    """What this process knows of a style file that it has written."""

    def __init__(self, path: Path) -> None:
        self.path, self.replacements, self.state = path, 0, ""

    def note(self, replaced: bool) -> None:
        """It was written, or holds the style already."""
        self.replacements += replaced
        self.state = file_state(self.path)

    def changes(self) -> str:
        """Another text after each replacement, and when the file is not what was written last; empty until then."""
        state = file_state(self.path)
        return f"{self.replacements or ''}{'' if state == self.state else state}"


# Name -> file. As long-lived as the host's memory of results.
_saved: dict[str, _Saved] = {}


class ContextDiffusionSaveVisualContext(io.ComfyNode):
    """A visual context as a style file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ContextDiffusionSaveVisualContext",
            display_name="Save Visual Context",
            category=CATEGORY,
            description="Saves a visual context as a style in models/visual_context, for Load Visual Context: the "
            "context images are not needed again, and neither is the image encoder.",
            search_aliases=["context diffusion", "save style", "export style", "embedding", "save clip vision output"],
            inputs=[
                io.ClipVisionOutput.Input(
                    "visual_context", tooltip="What to save: visual_context of Encode Visual Context."
                ),
                io.String.Input(
                    "name",
                    default="my-style",
                    tooltip='The style\'s name. A "/" makes a sub-folder: "emoji/line art".',
                ),
                io.Boolean.Input(
                    "overwrite",
                    default=False,
                    advanced=True,
                    tooltip="Replace a style of this name. Off, a name that holds another style is an error.",
                ),
            ],
            outputs=[io.ClipVisionOutput.Output("visual_context", tooltip="The same visual context, to go on with.")],
            is_output_node=True,
        )

    @classmethod
    def fingerprint_inputs(cls, name: str | None = None, **others: object) -> str:
        # The host may hold on to what a node gave for inputs of long ago: it must not be taken for a file that was
        # written over since, or is gone.
        saved = _saved if name is None else {name: _saved[name]} if name in _saved else {}
        return "\n".join(f"{each} {file.changes()}" for each, file in saved.items() if file.changes())

    @classmethod
    def execute(cls, visual_context, name, overwrite) -> io.NodeOutput:
        import folder_paths
        import torch

        from ..context_diffusion.style_file import save_style, style_path
        from .checks import check_visual_context

        check_visual_context(visual_context)
        # The first of the folders, where Load Visual Context looks first as well.
        folder = folder_paths.get_folder_paths(STYLES)[0]
        path = style_path(folder, name)
        features = {feature: getattr(visual_context, feature, None) for feature in _FEATURES}
        tensors = {feature: value for feature, value in features.items() if isinstance(value, torch.Tensor)}
        info = dict(getattr(visual_context, "context_diffusion", {"images": len(tensors[_FEATURES[0]])}))
        info["image_sizes"] = [list(size) for size in getattr(visual_context, "image_sizes", [])]
        replaced = os.path.exists(path)  # says no where Path.exists raises, on names too long
        written = save_style(path, tensors, info, overwrite)
        _saved.setdefault(name, _Saved(path)).note(replaced and written)
        shown = path.relative_to(folder).as_posix()
        text = f"Saved as {shown}" if written else f"{shown} holds this style already"
        return io.NodeOutput(visual_context, ui=ui.PreviewText(text))


class ContextDiffusionLoadVisualContext(io.ComfyNode):
    """A style file as a visual context."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ContextDiffusionLoadVisualContext",
            display_name="Load Visual Context",
            category=CATEGORY,
            description="Loads a style that Save Visual Context wrote, in place of context images and their encoder. "
            "It fits models with the image encoder that it was made with.",
            search_aliases=["context diffusion", "load style", "saved style", "embedding", "load clip vision output"],
            inputs=[
                io.Combo.Input(
                    "name",
                    options=_style_names(),
                    tooltip="A style that comes with the pack, or a file in models/visual_context. Press R after "
                    "saving a new one.",
                )
            ],
            outputs=[io.ClipVisionOutput.Output("visual_context", tooltip="For Combine Text and Visual Context.")],
        )

    @classmethod
    def fingerprint_inputs(cls, name: str | None) -> str:
        # A style that was saved anew is loaded again.
        return fingerprint(_style_names() if name is None else [name], _style_file)

    @classmethod
    def execute(cls, name) -> io.NodeOutput:
        import comfy.clip_vision
        import comfy.model_management
        import torch

        from ..context_diffusion.style_file import load_style

        tensors, info = load_style(_style_file(name))
        device = comfy.model_management.intermediate_device()
        output = comfy.clip_vision.Output()
        for feature in _FEATURES:
            output[feature] = tensors[feature].to(device) if feature in tensors else None
        if output["all_hidden_states"] is None:
            del output.all_hidden_states
        output["image_sizes"] = [torch.Size(size) for size in info.pop("image_sizes", [])]
        output["context_diffusion"] = {key: info[key] for key in _NOTES if key in info}
        return io.NodeOutput(output)


def _style_names():
    """What the list of styles shows: those that come with the pack first."""
    import folder_paths

    from ..context_diffusion.pretrained import bundled_styles

    return [name + BUNDLED for name in bundled_styles()] + folder_paths.get_filename_list(STYLES)


def _style_file(name):
    """The path of a style from its name in the list."""
    from pathlib import Path

    import folder_paths

    from ..context_diffusion.errors import ContextDiffusionError
    from ..context_diffusion.pretrained import bundled_styles

    bundled = bundled_styles().get(name.removesuffix(BUNDLED)) if name.endswith(BUNDLED) else None
    path = bundled or folder_paths.get_full_path(STYLES, name)
    if path is None:
        raise ContextDiffusionError(
            f"there is no style {name!r} in models/{STYLES}: choose another name, or save it with Save Visual Context"
        )
    return Path(path)


NODES = [
    ContextDiffusionEncodeVisualContext,
    ContextDiffusionSaveVisualContext,
    ContextDiffusionLoadVisualContext,
]
