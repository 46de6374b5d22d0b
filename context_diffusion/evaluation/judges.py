"""The frozen networks that judge images, and the style classifier on top of one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..features import networks
from ..features.networks import embed_images
from .probes import LinearProbe, fit_probe

if TYPE_CHECKING:
    from ..data.library import EmojiLibrary


@dataclass(frozen=True)
class Judges:
    """Who judges.

    Attributes:
        kid_features: of KID.
        style_features: of the style classifier.
        style_probe: fitted on train codepoints in all styles.
    """

    kid_features: networks.EfficientNetLite0Features
    style_features: networks.SqueezeNetFeatures
    style_probe: LinearProbe


def fit_judges(
    library: EmojiLibrary, squeezenet: networks.SqueezeNetFeatures, per_style: int = 600, seed: int = 0
) -> Judges:
    """Fit the style classifier on codepoints that are not held out, all nine styles.

    Args:
        library: the emoji data set.
        squeezenet: from `load_squeezenet`.
        per_style: images of each style.
        seed: of their choice.
    """
    rng = np.random.default_rng(seed)
    features, labels, groups = [], [], []
    for style in library.styles:
        pool = [key for key in library.keys[style] if not library.is_heldout(key)]
        keys = sorted(rng.choice(pool, size=min(per_style, len(pool)), replace=False).tolist())
        for start in range(0, len(keys), 64):
            features.append(embed_images(squeezenet, library.batch(style, keys[start : start + 64])))
        labels += [style] * len(keys)
        groups += keys
    probe = fit_probe(torch.cat(features), labels, groups)
    return Judges(networks.EfficientNetLite0Features(), squeezenet, probe)
