"""Does the image encoder see style and color? Linear probes on its tokens, and on an ImageNet network."""

from __future__ import annotations

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
    sets = {}
    for name, pools, size in (
        ("train", library.train_keys, per_style),
        ("test", library.heldout_keys, heldout),
    ):
        rows: dict[str, list] = {
            "image_encoder": [],
            network.name: [],
            "style": [],
            "dominant_color": [],
            "key": [],
        }
        for style in library.train_styles:
            keys = sorted(rng.choice(pools[style], size=min(size, len(pools[style])), replace=False).tolist())
            keys = [key for key in keys if library.colors(style, key)]
            for start in range(0, len(keys), 64):
                images = library.batch(style, keys[start : start + 64])
                rows["image_encoder"].append(pooled_tokens(image_encoder, images).cpu())
                rows[network.name].append(pooled_maps(network, images))
            rows["style"] += [style] * len(keys)
            rows["dominant_color"] += [library.colors(style, key)[0] for key in keys]
            rows["key"] += keys
        sets[name] = rows
    train, test = sets["train"], sets["test"]
    report: dict[str, dict[str, list[float]]] = {}
    for label in ("style", "dominant_color"):
        report[label] = {}
        for features in ("image_encoder", network.name):
            probe = fit_probe(torch.cat(train[features]), train[label], train["key"])
            correct = probe.correct(torch.cat(test[features]), test[label])
            report[label][features] = mean_estimate(correct, test["key"], samples=2000).triple()
        commonest = max(sorted(set(train[label])), key=train[label].count)
        share = test[label].count(commonest) / len(test[label])
        report[label]["chance"] = [share, share, share]
    return report
