"""Does the image encoder see style and color? Linear probes on its tokens, and on an ImageNet network."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from ..features import networks
from ..model.visual_context import clip_preprocess
from .estimates import mean_estimate
from .probes import fit_probe

if TYPE_CHECKING:
    from ..data.library import EmojiLibrary


@torch.no_grad()
def pooled_tokens(image_encoder: nn.Module, images: Tensor) -> Tensor:
    """Mean and standard deviation over the tokens of the last hidden state: (B, 3, H, W) -> (B, 2 d_v)."""
    parameter = next(image_encoder.parameters())
    pixels = clip_preprocess(images, image_encoder.config.image_size).to(parameter)
    tokens = image_encoder(pixel_values=pixels).last_hidden_state.float()
    return torch.cat([tokens.mean(1), tokens.std(1, correction=0)], dim=1)


@torch.no_grad()
def pooled_maps(network: networks.EfficientNetLite0Features, images: Tensor) -> Tensor:
    """The same of EfficientNet-Lite0's last map: (B, 3, H, W) -> (B, 2560)."""
    maps = network.maps(images).flatten(2)
    return torch.cat([maps.mean(2), maps.std(2, correction=0)], dim=1)


def probe_encoder(
    image_encoder: nn.Module, library: EmojiLibrary, per_style: int = 400, heldout: int = 150, seed: int = 0
) -> dict[str, dict[str, list[float]]]:
    """Fit probes for style and dominant color on train codepoints, test them on held-out ones, train styles.

    Args:
        image_encoder: the model's CLIPVisionModel.
        library: the emoji data set.
        per_style: images of each style to fit on.
        heldout: images of each style to test on.
        seed: of their choice.

    Returns:
        `style` and `dominant_color` -> `image_encoder`, `EffNetLite0` and `chance` (the commonest class) ->
        accuracy [value, low, high].
    """
    network = networks.EfficientNetLite0Features()
    rng = np.random.default_rng(seed)
    sources = {"image_encoder": partial(pooled_tokens, image_encoder), network.name: partial(pooled_maps, network)}
    fit = _draw(library, library.train_keys, per_style, rng)
    test = _draw(library, library.heldout_keys, heldout, rng)
    labels = {
        "style": [[style for style, _ in pictures] for pictures in (fit, test)],
        "dominant_color": [[library.colors(*picture)[0] for picture in pictures] for pictures in (fit, test)],
    }
    keys = [[key for _, key in pictures] for pictures in (fit, test)]
    report: dict[str, dict[str, list[float]]] = {label: {} for label in labels}
    for source, embed in sources.items():
        features = [_embed(library, pictures, embed) for pictures in (fit, test)]
        for label, (known, asked) in labels.items():
            correct = fit_probe(features[0], known, keys[0]).correct(features[1], asked)
            report[label][source] = mean_estimate(correct, keys[1], samples=2000).triple()
    for label, (known, asked) in labels.items():
        share = asked.count(max(sorted(set(known)), key=known.count)) / len(asked)
        report[label]["chance"] = [share, share, share]
    return report


def _draw(
    library: EmojiLibrary, pools: dict[str, list[str]], size: int, rng: np.random.Generator
) -> list[tuple[str, str]]:
    """(style, key) of pictures that have a dominant color, style after style."""
    pictures = []
    for style in library.train_styles:
        keys = rng.choice(pools[style], size=min(size, len(pools[style])), replace=False).tolist()
        pictures += [(style, key) for key in sorted(keys) if library.colors(style, key)]
    return pictures


def _embed(
    library: EmojiLibrary, pictures: list[tuple[str, str]], embed: Callable[[Tensor], Tensor], batch: int = 64
) -> Tensor:
    parts = []
    for style in library.train_styles:
        keys = [key for other, key in pictures if other == style]
        parts += [embed(library.batch(style, keys[i : i + batch])).cpu() for i in range(0, len(keys), batch)]
    return torch.cat(parts)
