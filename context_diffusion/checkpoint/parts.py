"""The parts of a model: how a checkpoint describes each, names its weights, and builds it again."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from typing import Any

import torch
from torch import nn

from ..errors import ContextDiffusionError, brief
from ..model.context_diffusion import ContextDiffusion
from ..model.reading import RESEARCH, Reading
from ..model.visual_context import ContextProjector

# In the order in which they are built and checked; `register_part` adds to them.
PARTS = ["unet", "projector", "layout_encoder", "vae", "text_encoder", "image_encoder"]

# The first class is the one that a config means without saying so; `register_class` adds to them.
_DIFFUSERS: dict[str, tuple[str, ...]] = {
    "unet": ("UNet2DConditionModel",),
    "layout_encoder": ("ControlNetModel",),
    "vae": ("AutoencoderKL", "AutoencoderTiny"),
}
# Their configs name the class even where it is the first.
_CLASS_NAMED = ("vae",)
_TRANSFORMERS = {
    "text_encoder": ("CLIPTextModel", "CLIPTextConfig"),
    "image_encoder": ("CLIPVisionModel", "CLIPVisionConfig"),
}

# What defines a CLIP transformer. A config of transformers holds more, and other things in each release;
# none of it changes the network.
_CLIP_FIELDS = (
    "hidden_size",
    "intermediate_size",
    "projection_dim",
    "num_hidden_layers",
    "num_attention_heads",
    "hidden_act",
    "layer_norm_eps",
    "attention_dropout",
)
_FIELDS = {
    "text_encoder": (
        *_CLIP_FIELDS,
        "vocab_size",
        "max_position_embeddings",
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
    ),
    "image_encoder": (*_CLIP_FIELDS, "image_size", "patch_size", "num_channels"),
}

# transformers 4 names the weights with this prefix, transformers 5 without. Files have it, as nearly all CLIP
# files of the field do.
_PREFIXES = {"text_encoder": "text_model.", "image_encoder": "vision_model."}


# Parts that this package has classes of its own for, and the settings of each.
_OWN: dict[str, tuple[type[nn.Module], tuple[str, ...]]] = {
    "projector": (ContextProjector, ("vision_width", "text_width")),
}

# What others than the product registered: classes by name, models by the part that they are known by, and what must
# fit between parts.
_CLASSES: dict[str, type[nn.Module]] = {}
_MODELS: dict[str, type[ContextDiffusion]] = {}
_FITS: list[Callable[[Mapping[str, Mapping[str, Any]]], Iterator[str]]] = []

# The entries of a config that are no parts.
_ENTRIES = ("format_version", "schedule", "info", "variant")


def register_class(part: str, cls: type[nn.Module]) -> None:
    """Let a part be of one class more; its config in a file says so under `class`.

    Args:
        part: one of `PARTS` that diffusers has the class of.
        cls: takes its config as diffusers' models do; its name is what files say.
    """
    _DIFFUSERS[part] = (*_DIFFUSERS[part], cls.__name__)
    _CLASSES[cls.__name__] = cls


def register_part(
    part: str, cls: type[nn.Module], settings: Sequence[str], model: type[ContextDiffusion] | None = None
) -> None:
    """Let models have one part more.

    Args:
        part: its name in files and as an attribute of the model.
        cls: its `config` is what the file says of it.
        settings: the names in that.
        model: what a file with this part is read as.
    """
    PARTS.append(part)
    _OWN[part] = (cls, tuple(settings))
    if model is not None:
        _MODELS[part] = model


def register_fit(misfits: Callable[[Mapping[str, Mapping[str, Any]]], Iterator[str]]) -> None:
    """Add to what `find_misfits` finds: configs of the parts -> a line for each misfit."""
    _FITS.append(misfits)


def model_class(config: Mapping[str, Any]) -> type[ContextDiffusion]:
    """What a file with such a config is read as."""
    return next((cls for part, cls in _MODELS.items() if config.get(part) is not None), ContextDiffusion)


def check_known(config: Mapping[str, Any]) -> Reading:
    """Refuse a file's config that asks for something that nothing here is registered for.

    Returns:
        How the model reads its visual context.

    Raises:
        ContextDiffusionError: naming it, and what reads it. The message does not name the file.
    """
    unknown = sorted(name for name in set(config) - {*PARTS, *_ENTRIES} if config[name] is not None)
    if unknown:
        raise ContextDiffusionError(f"the config has a part unknown here, {unknown[0]}; {RESEARCH}")
    for name in PARTS:
        if config.get(name) is not None:
            class_of(name, config[name])
    return Reading.of(config.get("variant", {}))


def class_of(name: str, config: Any) -> str:
    """The name of the class that a part's config in a file makes.

    Raises:
        ContextDiffusionError: it is no table, or names a class that nothing here is registered for. The message does
            not name the file.
    """
    if not isinstance(config, dict):
        raise ContextDiffusionError(f"the {name} config is {brief(config)}, not a table of settings")
    expected = _class_names(name)
    class_name = config.get("class", expected[0]) if name in _DIFFUSERS else expected[0]
    if class_name not in expected:
        choice = " or ".join(expected)
        raise ContextDiffusionError(f"the {name} config is of class {brief(class_name)}, not {choice}; {RESEARCH}")
    return class_name


def present_parts(model: ContextDiffusion) -> dict[str, nn.Module]:
    """The parts that a model has, by name."""
    parts = {name: getattr(model, name, None) for name in PARTS}
    return {name: module for name, module in parts.items() if module is not None}


def describe_part(name: str, module: nn.Module) -> dict[str, Any]:
    """A part's config as JSON-ready values, the same under every release of the libraries.

    Raises:
        ContextDiffusionError: the module is of a class that a checkpoint does not carry.
    """
    expected, class_name = _class_names(name), type(module).__name__
    # Copies that a library wraps (compiled, parallel) are not what the file describes.
    if class_name not in expected:
        raise ContextDiffusionError(f"the {name} is a {class_name}: a checkpoint carries {' or '.join(expected)} only")
    if name == "projector":
        return {"vision_width": module.linear.in_features, "text_width": module.linear.out_features}
    if name in _OWN:
        return dict(module.config)
    if name in _FIELDS:
        return {field: getattr(module.config, field, None) for field in _FIELDS[name]}
    config, known = json.loads(module.to_json_string()), _settings(type(module))
    # diffusers notes more than its constructors take: where it came from, and what follows from the rest.
    config = {key: value for key, value in config.items() if key in known}
    return {"class": class_name, **config} if name in _CLASS_NAMED or class_name != expected[0] else config


def build_part(name: str, config: dict[str, Any], reading: Reading | None = None) -> nn.Module:
    """An unfilled part on the meta device: shapes without memory.

    Args:
        name: one of `PARTS`.
        config: one that `check_config.check_config` lets pass.
        reading: the model's.

    Raises:
        ContextDiffusionError: the config has an entry that this release of the library does not know, or the
            library refuses it. The message does not name the file.
    """
    class_name = class_of(name, config)
    if name in _OWN:
        maker, known = _OWN[name][0], set(_OWN[name][1])
    elif name in _TRANSFORMERS:
        library = import_module("transformers")
        model_class, config_class = (getattr(library, each) for each in _TRANSFORMERS[name])
        known = set(_FIELDS[name])

        def maker(**settings: Any) -> nn.Module:
            return model_class(config_class(**settings))

    else:
        config = {key: value for key, value in config.items() if key != "class"}
        maker = _CLASSES.get(class_name) or getattr(import_module("diffusers"), class_name)
        known = _settings(maker)
    # A newer library may have written a switch that is off: leaving it out changes nothing.
    unknown = sorted(key for key in set(config) - known if config[key] not in (None, False))
    if unknown:
        raise ContextDiffusionError(f"the {name} config has entries unknown here: {', '.join(unknown)}")
    try:
        with torch.device("meta"):
            module = maker(**{key: value for key, value in config.items() if key in known})
            if reading is not None and name in ("unet", "layout_encoder"):
                reading.prepare(module)
            return module
    # The libraries raise whatever their code runs into on a wrong config: all of it means the same here.
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ContextDiffusionError(f"the {name} config does not make a {class_name} ({reason})") from error


def fill_buffers(module: nn.Module) -> None:
    """Give the buffers that no checkpoint carries their values after a build on the meta device."""
    for path, buffer in list(module.named_buffers()):
        if not buffer.is_meta:
            continue
        parent, _, leaf = path.rpartition(".")
        if leaf != "position_ids":
            raise NotImplementedError(f"buffer {path} of {type(module).__name__} is in no checkpoint")
        values = torch.arange(buffer.shape[-1]).expand(buffer.shape)
        module.get_submodule(parent).register_buffer(leaf, values, persistent=False)


def file_key(name: str, key: str) -> str:
    """A weight's name in the file, from its part and its name in `state_dict()`."""
    prefix = _PREFIXES.get(name, "")
    return f"{name}.{key}" if key.startswith(prefix) else f"{name}.{prefix}{key}"


def file_keys(name: str, module: nn.Module) -> dict[str, str]:
    """Names in the file -> names in the module, for every weight that a file carries."""
    # position_ids were saved by releases of transformers before 4.31; they are 0, 1, 2, ...
    keys = [key for key in module.state_dict() if not key.endswith("embeddings.position_ids")]
    return {file_key(name, key): key for key in keys}


def misfits(model: ContextDiffusion) -> list[str]:
    """What does not fit between the parts, one line each; empty for a model that works."""
    configs = {name: describe_part(name, module) for name, module in present_parts(model).items()}
    return find_misfits(configs, None if model.tokenizer is None else len(model.tokenizer))


def find_misfits(configs: Mapping[str, Mapping[str, Any]], tokens: int | None) -> list[str]:
    """`misfits` by what a checkpoint says of a model, before any of it is built.

    Args:
        configs: of the parts, as `describe_part` gives them.
        tokens: of the tokenizer, or None without one.
    """
    problems = []

    def compare(left: str, left_value: Any, right: str, right_value: Any) -> None:
        if left_value != right_value:
            problems.append(f"{left} is {left_value} and {right} is {right_value}: they must be equal")

    unet, projector = configs["unet"], configs.get("projector")
    width = ("the UNet's cross_attention_dim", unet["cross_attention_dim"])
    if projector is not None:
        compare(*width, "the projector's output width", projector["text_width"])
    if "image_encoder" in configs and projector is not None:
        vision_width = configs["image_encoder"]["hidden_size"]
        compare("the image encoder's width", vision_width, "the projector's input width", projector["vision_width"])
    if "text_encoder" in configs:
        compare(*width, "the text encoder's width", configs["text_encoder"]["hidden_size"])
    layout = configs.get("layout_encoder")
    if layout is not None and "class" not in layout:
        compare(*width, "the layout encoder's cross_attention_dim", layout["cross_attention_dim"])
        for field in ("in_channels", "block_out_channels", "layers_per_block"):
            compare(f"the UNet's {field}", unet[field], f"the layout encoder's {field}", layout[field])
    if "vae" in configs:
        channels = ("the VAE's latent_channels", configs["vae"]["latent_channels"])
        compare("the UNet's in_channels", unet["in_channels"], *channels)
    if tokens is not None and "text_encoder" in configs:
        rows = configs["text_encoder"]["vocab_size"]
        if tokens > rows:
            problems.append(f"the tokenizer has {tokens} tokens and the text encoder knows {rows}")
    return problems + [line for misfits in _FITS for line in misfits(configs)]


def _class_names(name: str) -> tuple[str, ...]:
    """The classes that a part may be of."""
    if name in _OWN:
        return (_OWN[name][0].__name__,)
    return _DIFFUSERS.get(name) or _TRANSFORMERS[name][:1]


def _settings(maker: type[nn.Module]) -> set[str]:
    """What the constructor of a diffusers class takes."""
    return set(inspect.signature(maker.__init__).parameters) - {"self"}
