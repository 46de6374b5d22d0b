"""A data set in the format of `context-diffusion data emoji`, drawn here in a moment, and stages that run on it."""

import json

import torch
from PIL import Image, ImageDraw

from context_diffusion.training.config import RunConfig

SIZE = 64  # pixels; latents are (4, 8, 8)
SHAPES = ("circle", "square", "triangle", "bar", "cross")
MARKS = ("red", "green", "blue", "orange", "purple")
# Name, whether held out, fill and line. The first two share their layout, as their namesakes do.
STYLES = (
    ("openmoji", False, "#f4c430", "black"),
    ("openmoji-black", False, "white", "black"),
    ("twemoji", False, "#55acee", None),
    ("emojione", True, "#ff7f50", "#5b3a1e"),
)


def tiny_emoji():
    """Five shapes (subgroups) of five marks: 25 keys, one of each shape held out."""
    return {
        f"{shape}-{mark}": {
            "name": f"{mark} {shape}",
            "group": "round" if shape == "circle" else "angular",
            "subgroup": f"{shape} shapes",
            "keywords": [mark, "dot", f"{shape} with a mark"],
            "heldout": index == number,
        }
        for number, shape in enumerate(SHAPES)
        for index, mark in enumerate(MARKS)
    }


def draw(shape, mark, fill, line, size=SIZE):
    """One picture: the shape in the style's colors, with a dot whose place and color are the mark's."""
    image = Image.new("RGB", (size, size), "white")
    pen = ImageDraw.Draw(image)
    a, b, c = size // 8, size - size // 8, size // 2
    look = {"fill": fill, "outline": line, "width": size // 24}
    if shape == "circle":
        pen.ellipse((a, a, b, b), **look)
    elif shape == "square":
        pen.rectangle((a, a, b, b), **look)
    elif shape == "triangle":
        pen.polygon([(c, a), (b, b), (a, b)], **look)
    elif shape == "bar":
        pen.rectangle((a, c - size // 6, b, c + size // 6), **look)
    else:
        pen.rectangle((c - size // 6, a, c + size // 6, b), **look)
        pen.rectangle((a, c - size // 6, b, c + size // 6), **look)
    x = c + (MARKS.index(mark) - 2) * size // 10
    radius = size // 14 + MARKS.index(mark)
    pen.ellipse((x - radius, c - radius, x + radius, c + radius), fill=mark, outline=line)
    return image


def write_tiny_data(folder, size=SIZE):
    """Write the data set to a folder and return the folder."""
    emoji = tiny_emoji()
    for style, _, fill, line in STYLES:
        images = folder / "images" / style
        images.mkdir(parents=True)
        for key in emoji:
            draw(*key.split("-"), fill, line, size).save(images / f"{key}.png")
    styles = {
        name: {
            "words": f"{name} style",
            "heldout": heldout,
            "licence": "CC0-1.0",
            "attribution": "the tests",
            "images": len(emoji),
        }
        for name, heldout, _, _ in STYLES
    }
    (folder / "index.json").write_text(json.dumps({"format": 1, "size": size, "emoji": emoji, "styles": styles}))
    return folder


def write_tiny_encoders(folder):
    """What the stages `vae` and `clip` leave behind, with random weights; returns the folder with both."""
    from context_diffusion.checkpoint.tokenizer import tokenizer_to_json
    from context_diffusion.training.begin.vae import new_vae
    from context_diffusion.training.settings import CLIPSettings
    from context_diffusion.training.stages.clip import new_clip

    from .tiny import tiny_tokenizer

    tokenizer = tiny_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        new_vae(4, (1, 1, 1, 1), (1, 1, 1, 1)).save_pretrained(folder / "vae")
        shape = CLIPSettings(width=48, heads=3, text_layers=1, vision_layers=1, image_size=32)
        text, image = new_clip(shape, len(tokenizer), tokenizer.eos_token_id)
        text.save_pretrained(folder / "text_encoder")
        image.save_pretrained(folder / "image_encoder")
    (folder / "tokenizer.json").write_text(tokenizer_to_json(tokenizer))
    return folder


def _config(stage, data, out, values, settings):
    run = {
        "steps": 4,
        "learning_rate": 1e-3,
        "warmup_steps": 2,
        "ema_decay": 0.9,
        "seed": 3,
        "threads": 1,
        "log_every": 0,
        "save_every": 0,
        "sample_every": 0,
        **values,
    }
    return RunConfig(stage=stage, data=str(data), out=str(out), settings=settings, **run)


def vae_config(data, out, **values):
    settings = {
        "latent_channels": 4,
        "encoder_blocks": (1, 1, 1, 1),
        "decoder_blocks": (1, 1, 1, 1),
        "crop": 16,
        "transformed": 0.5,
    }
    return _config("vae", data, out, {"batch_size": 2, **values}, settings)


def clip_config(data, out, **values):
    settings = {
        "width": 48,
        "heads": 3,
        "text_layers": 1,
        "vision_layers": 1,
        "image_size": 32,
        "vocabulary": 600,
    }
    return _config("clip", data, out, {"batch_size": 4, **values}, settings)


def diffusion_config(data, encoders, out, **values):
    settings = {
        "vae": str(encoders),
        "clip": str(encoders),
        "channels": (32, 32),
        "attention": (False, True),
        "sample_size": SIZE // 8,
        "repeats": 2,
        "pool_groups": 6,
        "shares": {"plain": 0.34, "transformed": 0.33, "reverse": 0.33},
        "other_query": 0.5,
        "info": {"name": "tiny", "title": "tiny", "license": "CC0-1.0", "resolution": SIZE},
    }
    return _config("diffusion", data, out, {"batch_size": 16, **values}, settings)
