"""Whether parts of a graph belong together: said before sampling, in words, at the node where they meet.

Only what is certain is refused. The checks know the networks of the Stable Diffusion kind, ours among them; any other,
and a MODEL whose calls another node wraps, is the host's business. Imported when a node runs.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from ..context_diffusion.errors import ContextDiffusionError
from .checks import check_present, check_text, check_visual_context

# What the host's nodes call latents that are no picture's, whatever their shape.
_OTHER_LATENTS = ("audio", "hunyuan3dv2", "trellis2")


def check_style_model(style_model: object, visual_context: object) -> None:
    """Refuse a visual context that the style model cannot read.

    Raises:
        ContextDiffusionError: another width, another image encoder where both are known, or no tokens.
    """
    check_visual_context(visual_context)
    tokens = visual_context.last_hidden_state
    expected, _ = _style_widths(style_model)
    if expected is not None and tokens.shape[-1] != expected:
        raise ContextDiffusionError(
            f"visual_context is {tokens.shape[-1]} wide and style_model reads {expected}: they belong to different "
            "models; connect the CLIP_VISION that goes with this style model (the same Load Context Diffusion's) to "
            "the node that encodes the images"
        )
    made_by = getattr(visual_context, "context_diffusion", {}).get("encoder")
    reads = getattr(getattr(style_model, "model", None), "encoder", None)
    if isinstance(reads, str) and made_by is not None and made_by != reads:
        raise ContextDiffusionError(
            "visual_context was made by another image encoder than the one that style_model belongs to, and would be "
            "read as noise: connect the CLIP_VISION of the same Load Context Diffusion to the node that encodes the "
            "images; a saved style of another model, or of an earlier release of this one, has to be saved again"
        )


def check_text_width(style_model: object, conditioning: list, name: str) -> None:
    """Refuse text of another width than the visual context that it is to be joined with.

    Raises:
        ContextDiffusionError: otherwise.
    """
    _, width = _style_widths(style_model)
    if width is None:
        return
    for tokens, _ in conditioning:
        if tokens.shape[-1] != width:
            raise ContextDiffusionError(
                f"{name} is text {tokens.shape[-1]} wide and style_model gives a visual context {width} wide: they "
                "belong to different model families; connect the CLIP and the STYLE_MODEL of the same loader (CLIP "
                f"{'to clip' if name == 'clip' else f'to the CLIP Text Encode before {name}'})"
            )


def _style_widths(style_model: object) -> tuple[int | None, int | None]:
    """The widths of the tokens that a style model reads and gives; None: not known.

    Known are ours, Flux Redux and the T2I style adapter, by their own layers: one of such a name further down in
    another network says nothing about its ends.
    """
    module = getattr(style_model, "model", None)
    for first, last in (("linear", "linear"), ("redux_up", "redux_down")):
        layers = getattr(module, first, None), getattr(module, last, None)
        if all(hasattr(layer, "in_features") for layer in layers):
            return layers[0].in_features, layers[1].out_features
    norm = getattr(module, "ln_pre", None)
    return (norm.normalized_shape[0] if isinstance(norm, nn.LayerNorm) else None), None


def check_control_net(control_net: object, conditionings: dict[str, list], vae: object) -> None:
    """Refuse a control model that reads another width of text, or that needs a VAE which is not connected.

    Args:
        control_net: what the socket gave; only the kinds that carry a ControlNet of the SD family can be looked into.
        conditionings: input name -> CONDITIONING.
        vae: what that socket gave, or None.

    Raises:
        ContextDiffusionError: otherwise.
    """
    check_present(control_net, "control_net", "connect CONTROL_NET of Load Context Diffusion or Load ControlNet Model")
    width = _context_width(getattr(control_net, "control_model", None))
    for name, conditioning in conditionings.items():
        for tokens, options in conditioning:
            text = options.get("cross_attn_controlnet", tokens)
            if width is not None and isinstance(text, Tensor) and text.shape[-1] != width:
                raise ContextDiffusionError(
                    f"control_net reads text {width} wide and {name} is {text.shape[-1]} wide: the control model is "
                    f"for another UNet; connect the CONTROL_NET that goes with the text model of {name} (the same "
                    "loader's)"
                )
    if getattr(control_net, "latent_format", None) is not None and vae is None:
        raise ContextDiffusionError(
            "control_net reads latents, and nothing is connected to vae: connect the model's VAE to vae"
        )


def _context_width(module: object) -> int | None:
    """The width of a ControlNet's cross-attention; None: it has none, or it is of another kind."""
    if not isinstance(module, nn.Module):
        return None
    for name, layer in module.named_modules():
        if name.endswith("attn2.to_k") and hasattr(layer, "in_features"):
            return layer.in_features
    return None


def check_conditionings(model: object, **conditionings: list | None) -> None:
    """Refuse text of another width or none at all, and a control model for another UNet.

    Args:
        model: the ModelPatcher of a MODEL.
        conditionings: input name -> CONDITIONING, or None for an input that is not connected. One without entries is
            no mistake: guidance then goes by the others.

    Raises:
        ContextDiffusionError: naming the input, both sides and the connection to change.
    """
    unet = _known_unet(model)
    if unet is None:
        return
    width = model.model.model_config.unet_config.get("context_dim")
    seen = set()
    for name, conditioning in conditionings.items():
        if conditioning and width is not None:
            check_text(conditioning, name)
        for text, options in conditioning or []:
            if width is not None and text.shape[-1] != width:
                raise ContextDiffusionError(
                    f"{name} is {text.shape[-1]} numbers wide, but this MODEL reads conditioning of width {width}: "
                    f"they are of two model families. Connect the CLIP that belongs to this MODEL to the text encoder "
                    f"behind {name}, or the MODEL that belongs to that CLIP to model"
                )
            for control in _chain(options.get("control")):
                network = getattr(control, "control_model", None)
                if id(network) not in seen:
                    seen.add(id(network))
                    _check_control(name, network, unet, model.model.latent_format.latent_channels)


def check_latent(model: object, latent: dict) -> None:
    """Refuse what is no picture's latent, and one of another VAE. Empty ones get the channels that the MODEL takes.

    Raises:
        ContextDiffusionError: otherwise.
    """
    if _known_unet(model) is None:
        return
    samples, kind = latent.get("samples"), latent.get("type")
    channels = model.model.latent_format.latent_channels
    if not isinstance(samples, Tensor):
        got = "several latents in one" if getattr(samples, "is_nested", False) else type(samples).__name__
        problem = f"latent_image holds {got}, as video models with sound have them"
    elif samples.ndim != 4 or kind in _OTHER_LATENTS:
        what = kind or {3: "audio", 5: "a video"}.get(samples.ndim, "something else")
        problem = f"latent_image has the shape {tuple(samples.shape)} of {what}"
    elif samples.shape[1] != channels and samples.any():
        problem = f"latent_image has the shape {tuple(samples.shape)} of another VAE"
    else:
        return
    raise ContextDiffusionError(
        f"{problem}, but this MODEL takes latents (batch, {channels}, height, width) of pictures. Connect the VAE that "
        "belongs to this MODEL to the VAE Encode behind latent_image, or Empty Latent Image to latent_image"
    )


def check_queries(latent: dict, **conditionings: list | None) -> None:
    """Refuse more query images than latents: the host would leave the last ones out. Fewer it takes in turn.

    Args:
        latent: the LATENT to denoise.
        conditionings: as in `check_conditionings`.

    Raises:
        ContextDiffusionError: naming the input and the two numbers.
    """
    latents = len(latent["samples"])
    for name, conditioning in conditionings.items():
        for _, options in conditioning or []:
            for control in _chain(options.get("control")):
                hint = getattr(control, "cond_hint_original", None)
                if isinstance(hint, Tensor) and len(hint) > latents:
                    raise ContextDiffusionError(
                        f"{name} has {len(hint)} query images and latent_image {latents} latents, so that some queries "
                        f"would be left out: make the latent's batch_size {len(hint)}, or connect {latents} to image "
                        "of Apply Query Layout"
                    )


def _known_unet(model: object) -> nn.Module | None:
    """The UNet of a MODEL, if it is one of those that the checks know and nothing stands before it."""
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    unet = model.model.diffusion_model
    # The very class: what is made of it may turn the text into another width first.
    return unet if type(unet) is UNetModel and "model_function_wrapper" not in model.model_options else None


def _chain(control: object | None) -> Iterator[object]:
    """A control and those stacked under it."""
    while control is not None:
        yield control
        control = getattr(control, "previous_controlnet", None)


def _check_control(name: str, network: object, unet: nn.Module, latent_channels: int) -> None:
    """A ControlNet is a copy of its UNet's first half, so its layers must be as wide as the UNet's."""
    from comfy.cldm.cldm import ControlNet

    if not isinstance(network, ControlNet):
        return
    difference = None
    if len(network.input_blocks) != len(unet.input_blocks):
        difference = f"{len(network.input_blocks)} input blocks, the UNet {len(unet.input_blocks)}"
    elif network.in_channels != latent_channels:
        difference = f"{network.in_channels} latent channels, the UNet {latent_channels}"
    else:
        theirs = _widths(network)
        ours = _widths(unet)
        for layer in theirs.keys() & ours.keys():
            if theirs[layer] != ours[layer]:
                difference = f"layers of width {theirs[layer]} where the UNet has {ours[layer]}"
                break
    if difference:
        raise ContextDiffusionError(
            f"the control model in {name} was made for another UNet than this MODEL's: it has {difference}. Connect "
            f"the CONTROL_NET that belongs to this MODEL to Apply Query Layout (or to the node that applied it)"
        )


def _widths(network: nn.Module) -> dict[str, tuple[int, int]]:
    """Layer name -> (in, out) of the linear layers and convolutions that a ControlNet and its UNet share."""
    # The layers' own word, not the weights' shapes: quantised weights are packed.
    widths = {}
    for part in ("time_embed", "input_blocks", "middle_block"):
        for layer, module in getattr(network, part).named_modules():
            if isinstance(module, nn.Linear):
                widths[f"{part}.{layer}"] = (module.in_features, module.out_features)
            elif isinstance(module, nn.Conv2d):
                widths[f"{part}.{layer}"] = (module.in_channels, module.out_channels)
    # The UNet's first layer may take more than the latents: an inpainting model's mask, say.
    widths.pop("input_blocks.0.0", None)
    return widths
