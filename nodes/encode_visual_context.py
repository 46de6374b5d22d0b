"""Context images into one visual context."""

from __future__ import annotations

from comfy_api.latest import io

from ..context_diffusion.choices import AGGREGATIONS, FITS
from .category import CATEGORY

_MAX_IMAGES = 16
# Sockets that are there from the start. A link to one that grew later is lost where the interface pastes the node or
# unpacks a subgraph: it looks for the socket at its place, where there is a widget's by then.
_SOCKETS = 8
# How many images go through the encoder at once: enough to keep it busy, and memory does not grow with k.
_CHUNK = 8


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
                    template=io.Autogrow.TemplatePrefix(image, prefix="image", min=_SOCKETS, max=_MAX_IMAGES),
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
                    options=list(FITS),
                    default="crop",
                    tooltip="How an image that is not square becomes what the encoder takes. crop: its middle; pad: "
                    "all of it, on a ground of its border's average color; stretch: all of it, out of proportion. "
                    "The output seen shows the result.",
                ),
                io.Combo.Input(
                    "aggregation",
                    options=list(AGGREGATIONS),
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
    from ..context_diffusion.model.visual_context import check_weights

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

    from ..context_diffusion.checkpoint.style import FEATURES
    from ..context_diffusion.errors import ContextDiffusionError
    from ..context_diffusion.model.visual_context import Join

    joins: dict[str, Join] = {}
    shapes: dict[str, torch.Size] = {}
    progress = comfy.utils.ProgressBar(len(weights))
    for chunk in (chunk for batch in batches for chunk in batch.split(_CHUNK)):
        comfy.model_management.throw_exception_if_processing_interrupted()
        encoded = clip_vision.encode_image(chunk, crop=crop)
        image_size = encoded.image_sizes[0]
        for name in FEATURES:
            features = getattr(encoded, name, None)
            if not isinstance(features, torch.Tensor):
                continue
            if shapes.setdefault(name, features.shape[1:]) != features.shape[1:]:
                raise ContextDiffusionError(
                    "this CLIP_VISION gives another number of tokens for each shape of image, which cannot be joined: "
                    "set fit to pad, or connect images of one shape"
                )
            joins.setdefault(name, Join(weights, aggregation)).add(features)
        progress.update(len(chunk))

    output = comfy.clip_vision.Output()
    for name in FEATURES:
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


NODES = [ContextDiffusionEncodeVisualContext]
