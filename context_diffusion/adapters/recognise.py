"""Which kind of adapter a file is, by the names and shapes of its tensors and never by its own name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from ..errors import ContextDiffusionError

PROJECTION = "image_proj."
# How files name the attention weights; some trainers write the second.
ATTENTION = ("ip_adapter.", "adapter_modules.")

# Cross-attentions of the public UNets.
_FAMILIES = {16: "Stable Diffusion 1.5", 70: "SDXL"}

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class AdapterKind:
    """What an adapter file holds.

    Attributes:
        projection: `base` (one pooled embedding), `plus` (a resampler of hidden states) or `full` (every hidden state).
        feature: what of the image encoder it reads: `image_embeds` (B, d_v), or `penultimate_hidden_states`
            (B, N, d_v).
        encoder_width: d_v of that feature.
        text_width: d_c, of the UNet's cross-attention.
        tokens: of one image behind the projection; None where there is one for each hidden state (`full`).
        inner_widths: of keys and values, one for each cross-attention of the UNet in the order of its weights: the way
            down, the way up, the middle.
    """

    projection: str
    feature: str
    encoder_width: int
    text_width: int
    tokens: int | None
    inner_widths: tuple[int, ...]

    @property
    def family(self) -> str:
        """The models it was made for, in words."""
        layers = len(self.inner_widths)
        return _FAMILIES.get(layers, f"a UNet with {layers} cross-attentions")


def recognise(shapes: Shapes) -> AdapterKind:
    """The kind of an adapter file.

    Args:
        shapes: name -> shape of every tensor, with the file's prefixes.

    Raises:
        ContextDiffusionError: it is something else (said by name, with what takes it), or its parts do not fit each
            other. The message does not name the file.
    """
    _refuse_others(shapes)
    projection = _under(shapes, PROJECTION)
    widths = _attention(shapes)
    text_width = widths[0][0]
    for number, (width, _) in enumerate(widths):
        if width != text_width:
            raise ContextDiffusionError(
                f"its cross-attention {number} reads tokens of width {width} and the first {text_width}: the file is "
                "damaged or not whole, download it again"
            )
    inner = tuple(inner for _, inner in widths)
    if "proj.weight" in projection:
        rows, encoder_width = _matrix(projection, "proj.weight")
        if rows % text_width:
            raise ContextDiffusionError(
                f"its projection gives {rows} numbers, which are no whole tokens of width {text_width}: the file is "
                "damaged"
            )
        return AdapterKind("base", "image_embeds", encoder_width, text_width, rows // text_width, inner)
    if "latents" in projection:
        _, encoder_width = _matrix(projection, "proj_in.weight")
        out, _ = _matrix(projection, "proj_out.weight")
        tokens = projection["latents"][1]
        return _checked(AdapterKind("plus", "penultimate_hidden_states", encoder_width, text_width, tokens, inner), out)
    if "proj.3.weight" in projection:
        out, _ = _matrix(projection, "proj.2.weight")
        _, encoder_width = _matrix(projection, "proj.0.weight")
        return _checked(AdapterKind("full", "penultimate_hidden_states", encoder_width, text_width, None, inner), out)
    raise ContextDiffusionError(
        f"its {PROJECTION}* ({', '.join(sorted(projection)[:3])} ...) are of no projection that is known here: "
        "those of IP-Adapter's base, plus and full files are"
    )


def _checked(kind: AdapterKind, out: int) -> AdapterKind:
    if out != kind.text_width:
        raise ContextDiffusionError(
            f"its projection gives tokens of width {out} and its attention reads {kind.text_width}: the parts are of "
            "different adapters"
        )
    return kind


def _attention(shapes: Shapes) -> list[tuple[int, int]]:
    """(d_c, inner width) of each cross-attention."""
    prefix = next((each for each in ATTENTION if any(name.startswith(each) for name in shapes)), None)
    if prefix is None:
        raise ContextDiffusionError(
            f"it has no attention weights ({' or '.join(each + '*' for each in ATTENTION)}): it is no adapter, or "
            "half of one"
        )
    weights = _under(shapes, prefix)
    numbers = sorted({int(name.split(".")[0]) for name in weights if name.split(".")[0].isdecimal()})
    # Every attention of the UNet has a number and every second, the self-attentions, no weights.
    if numbers != list(range(1, 2 * len(numbers), 2)):
        raise ContextDiffusionError(
            f"its attention weights are numbered {_some(numbers)} and those of an IP-Adapter 1, 3, 5 ...: it is of "
            "another kind, or not whole"
        )
    widths = []
    for number in numbers:
        key, value = (_matrix(weights, f"{number}.{name}.weight") for name in ("to_k_ip", "to_v_ip"))
        if key != value:
            raise ContextDiffusionError(
                f"its keys and values {number} differ in shape, {key} and {value}: it is damaged"
            )
        widths.append((key[1], key[0]))
    return widths


def _refuse_others(shapes: Shapes) -> None:
    """Name what a file is when it is one of the kinds that people take for these."""

    def having(pattern: str) -> bool:
        return any(re.search(pattern, name) for name in shapes)

    def width(name: str, axis: int = 1) -> int | None:
        shape = shapes.get(name, ())
        return shape[axis] if len(shape) == 2 else None

    other = None
    if having(r"^redux_(up|down)\."):
        other = (
            "a Redux model for FLUX: load it with Load Style Model, and encode the images with Encode Visual Context"
        )
    elif having(r"^style_embedding$"):
        other = "a T2I style adapter: load it with Load Style Model"
    elif having(r"^double_blocks\..*ip_adapter"):
        other = "an XLabs IP-Adapter for FLUX, which works inside FLUX's own blocks: XLabs' nodes take it, these do not"
    elif having(r"^image_proj\.time_embedding"):
        other = (
            "an IP-Adapter for Stable Diffusion 3.5, whose tokens change with every step: no node of this pack takes it"
        )
    elif having(r"^ip_adapter\.0\.to_k_ip\."):
        other = "InstantX's IP-Adapter for FLUX: its own nodes take it, these do not"
    elif having(r"^image_proj\.perceiver_resampler\."):
        other = "a FaceID plus adapter: it reads a face-recognition network's embedding, which IPAdapter_plus brings"
    elif having(r"^image_proj\.proj\.2\.") and having(r"^image_proj\.norm\."):
        other = (
            "a FaceID or portrait adapter: it reads a face-recognition network's embedding, which IPAdapter_plus brings"
        )
    elif width("image_proj.proj_in.weight") == 512:
        other = "an InstantID adapter: it reads a face-recognition network's embedding, which the InstantID nodes bring"
    elif width("image_proj.proj_out.weight", 0) == 2048 and width("image_proj.proj_in.weight") == 1024:
        other = "an IP-Adapter for Kolors, whose UNet ComfyUI does not have"
    elif not any(name.startswith(PROJECTION) for name in shapes):
        first = next(iter(sorted(shapes)), "no tensor at all")
        raise ContextDiffusionError(
            f"it is no image adapter (no {PROJECTION}*, first key {first}): give an IP-Adapter file for Stable "
            "Diffusion 1.5 or SDXL"
        )
    if other:
        raise ContextDiffusionError(f"it is {other}")


def _under(shapes: Shapes, prefix: str) -> dict[str, tuple[int, ...]]:
    return {name[len(prefix) :]: shape for name, shape in shapes.items() if name.startswith(prefix)}


def _matrix(shapes: Shapes, name: str) -> tuple[int, int]:
    shape = shapes.get(name)
    if shape is None or len(shape) != 2 or 0 in shape:
        raise ContextDiffusionError(
            f"its {name} is {'missing' if shape is None else list(shape)}, expected a matrix: the file is damaged or "
            "not whole, download it again"
        )
    return shape[0], shape[1]


def _some(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers[:4])) + (" ..." if len(numbers) > 4 else "")
