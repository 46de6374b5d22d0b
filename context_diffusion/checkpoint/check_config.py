"""Whether what a file says of a part can be true, by its tensors' names and shapes, before anything is built.

A config may ask for a hundred thousand layers, or for widths that fill the memory: building first and comparing
afterwards would end the program that was to say so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ..errors import ContextDiffusionError, brief

Shapes = Mapping[str, tuple[int, ...]]
Config = Mapping[str, Any]

# Latents of more pixels a side are no model's own size.
_LARGEST_SAMPLE = 4096
# Factors of what a network computes: text or a table there would be found out in the middle of it.
_NUMBERS = ("scaling_factor", "shift_factor", "norm_eps", "layer_norm_eps", "attention_dropout", "dropout")
_BLOCKS = ("DownBlock2D", "CrossAttnDownBlock2D")
_TEXT, _IMAGE = "text_model.embeddings.", "vision_model.embeddings."


def check_config(name: str, class_name: str, config: Config, shapes: Shapes) -> None:
    """Refuse a part's config that asks for other counts and widths than the file's tensors have.

    Args:
        name: of the part, for the message.
        class_name: what the config makes; for one without an entry in `_SHOWN` counts are bounded alone.
        config: what a file says of the part.
        shapes: of the part's tensors, by their names behind the part's own.

    Raises:
        ContextDiffusionError: naming the entry. The message does not name the file.
    """

    def refuse(entry: str, expected: object) -> None:
        said = f"has {entry} {brief(config[entry])}" if entry in config else f"lacks {entry}"
        raise ContextDiffusionError(f"the {name} config {said}, and its tensors show {brief(expected)}")

    for entry, value in config.items():
        # A layer has a tensor at least, and so has what a list has an entry for.
        counts = [each for each in _leaves(value) if isinstance(each, int | float)]
        counted = "layers" in entry or entry.endswith("blocks")
        if (isinstance(value, list) and len(value) > len(shapes)) or (counted and not 0 <= sum(counts) <= len(shapes)):
            refuse(entry, f"{len(shapes)} in all")
        if entry in _NUMBERS and not (value is None or isinstance(value, int | float)):
            raise ContextDiffusionError(f"the {name} config has {entry} {brief(value)}, not a number")
    for entry, shown in _SHOWN.get(class_name, lambda config, shapes: ())(config, shapes):
        said = config.get(entry)
        # One number may stand for a list of equal ones.
        value = [said] * len(shown) if isinstance(shown, list) and not isinstance(said, list) else said
        if value != shown or not all(_is_whole(each) or isinstance(each, str) for each in _leaves(value)):
            refuse(entry, shown)


def _unet(config: Config, shapes: Shapes) -> Iterator[tuple[str, Any]]:
    """Entries of a UNet2DConditionModel's or a ControlNetModel's config -> what the tensors show of them."""
    blocks = _numbered(shapes, "down_blocks.")
    channels = [_size(shapes, f"{block}.resnets.0.conv1.weight", 0) for block in blocks]
    yield "in_channels", _size(shapes, "conv_in.weight", 1)
    if "conv_out.weight" in shapes:
        yield "out_channels", _size(shapes, "conv_out.weight", 0)
    yield "block_out_channels", channels
    yield "layers_per_block", [len(_numbered(shapes, f"{block}.resnets.")) for block in blocks]
    widths = {shape[-1] for key, shape in shapes.items() if key.endswith("attn2.to_k.weight")}
    yield "cross_attention_dim", next(iter(widths)) if len(widths) == 1 else sorted(widths)
    depths = [len(_numbered(shapes, f"{block}.attentions.0.transformer_blocks.")) for block in blocks]
    kinds = config.get("down_block_types")
    if isinstance(kinds, list) and all(kind in _BLOCKS for kind in kinds):
        yield "down_block_types", [_BLOCKS[depth > 0] for depth in depths]
    entry = "num_attention_heads" if config.get("num_attention_heads") else "attention_head_dim"
    yield entry, _heads(config.get(entry), [width * (depth > 0) for width, depth in zip(channels, depths, strict=True)])
    # The last is also the depth of the middle; where a block has no attention, its own is nobody's.
    if depths and not depths[-1]:
        depths[-1] = len(_numbered(shapes, "mid_block.attentions.0.transformer_blocks."))
    said = config.get("transformer_layers_per_block")
    said = said if isinstance(said, list) else [said] * len(depths)
    yield "transformer_layers_per_block", [depth or own for depth, own in zip(depths, said, strict=False)]
    size = config.get("sample_size")
    sides = size if isinstance(size, list) else [size] * 2
    if size is not None and not (len(sides) == 2 and all(_is_whole(n) and 1 <= n <= _LARGEST_SAMPLE for n in sides)):
        yield "sample_size", f"nothing of it: 1 to {_LARGEST_SAMPLE} or two such numbers are possible"


def _projector(config: Config, shapes: Shapes) -> Iterator[tuple[str, Any]]:
    yield "vision_width", _size(shapes, "linear.weight", 1)
    yield "text_width", _size(shapes, "linear.weight", 0)


def _kl_vae(config: Config, shapes: Shapes) -> Iterator[tuple[str, Any]]:
    blocks = _numbered(shapes, "encoder.down_blocks.")
    yield "in_channels", _size(shapes, "encoder.conv_in.weight", 1)
    yield "out_channels", _size(shapes, "decoder.conv_out.weight", 0)
    yield "latent_channels", _size(shapes, "decoder.conv_in.weight", 1)
    yield "block_out_channels", [_size(shapes, f"{block}.resnets.0.conv1.weight", 0) for block in blocks]
    yield "layers_per_block", len(_numbered(shapes, "encoder.down_blocks.0.resnets."))


def _tiny_vae(config: Config, shapes: Shapes) -> Iterator[tuple[str, Any]]:
    yield "in_channels", _size(shapes, "encoder.layers.0.weight", 1)
    yield "latent_channels", _size(shapes, "decoder.layers.0.weight", 1)
    for half in ("encoder", "decoder"):
        levels = config.get(f"num_{half}_blocks")
        width = _size(shapes, f"{half}.layers.0.weight", 0)
        yield f"{half}_block_out_channels", [width] * (len(levels) if isinstance(levels, list) else 1)


def _clip(config: Config, shapes: Shapes) -> Iterator[tuple[str, Any]]:
    tower = next(iter(shapes), "").partition(".")[0]
    width = _size(shapes, f"{tower}.embeddings.position_embedding.weight", 1)
    yield "hidden_size", width
    yield "intermediate_size", _size(shapes, f"{tower}.encoder.layers.0.mlp.fc1.weight", 0)
    yield "num_hidden_layers", len(_numbered(shapes, f"{tower}.encoder.layers."))
    yield "num_attention_heads", _heads(config.get("num_attention_heads"), [width])


def _text_encoder(config: Config, shapes: Shapes) -> Iterator[tuple[str, Any]]:
    yield "vocab_size", _size(shapes, f"{_TEXT}token_embedding.weight", 0)
    yield "max_position_embeddings", _size(shapes, f"{_TEXT}position_embedding.weight", 0)
    yield from _clip(config, shapes)


def _image_encoder(config: Config, shapes: Shapes) -> Iterator[tuple[str, Any]]:
    patch = _size(shapes, f"{_IMAGE}patch_embedding.weight", -1)
    side = math.isqrt(max(_size(shapes, f"{_IMAGE}position_embedding.weight", 0) - 1, 0)) * patch
    said = config.get("image_size")
    # What is left beside whole patches is not seen.
    yield "image_size", said if _is_whole(said) and 0 < side <= said < side + patch else side
    yield "patch_size", patch
    yield "num_channels", _size(shapes, f"{_IMAGE}patch_embedding.weight", 1)
    yield from _clip(config, shapes)


_SHOWN: dict[str, Callable[[Config, Shapes], Iterator[tuple[str, Any]]]] = {
    "UNet2DConditionModel": _unet,
    "ControlNetModel": _unet,
    "ContextProjector": _projector,
    "AutoencoderKL": _kl_vae,
    "AutoencoderTiny": _tiny_vae,
    "CLIPTextModel": _text_encoder,
    "CLIPVisionModel": _image_encoder,
}


def _heads(heads: Any, widths: list[int]) -> Any:
    """The number of heads if the widths can be divided by it, else the widths."""
    each_heads = heads if isinstance(heads, list) else [heads] * len(widths)
    fits = len(each_heads) == len(widths) and all(_is_whole(each) and each >= 1 for each in each_heads)
    if fits and not any(width % each for width, each in zip(widths, each_heads, strict=True)):
        return heads
    return f"widths of {widths}"


def _numbered(shapes: Shapes, prefix: str) -> list[str]:
    """The numbered modules behind a prefix, as "prefix0", "prefix1", ..."""
    count = len({key[len(prefix) :].partition(".")[0] for key in shapes if key.startswith(prefix)})
    return [f"{prefix}{number}" for number in range(count)]


def _size(shapes: Shapes, key: str, axis: int) -> int:
    """0 where there is no such tensor."""
    shape = shapes.get(key, ())
    return shape[axis] if -len(shape) <= axis < len(shape) else 0


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, list):
        for each in value:
            yield from _leaves(each)
    else:
        yield value


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
