"""Are colors coherent, and are they the right ones?"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Regions:
    """Areas of one color in a batch of images.

    Attributes:
        labels: (B, H, W) int64; 0 is no region, others are numbered from 1 across the whole batch.
        image: (R,) int64, the image that each region lies in.
    """

    labels: Tensor
    image: Tensor


def color_regions(images: Tensor, levels: int = 6, border: int = 2, min_area: int = 40) -> Regions:
    """Connected areas of nearly constant color, less their borders.

    Colors are cut to `levels` a channel; areas of one such color (4-connected) lose `border` pixels all
    around, so that antialiasing stays outside; what has `min_area` pixels left is a region. The area that
    holds the image's border, its background, is left out: everything gets a plain background right.

    Args:
        images: (B, 3, H, W) in [0, 1], the truth.
        levels: per channel.
        border: pixels.
        min_area: pixels after the border is gone.
    """
    import numpy
    from scipy.ndimage import minimum_filter
    from skimage.measure import label, regionprops

    codes = (images.clamp(0, 1) * (levels - 1)).round().long()
    codes = (codes[:, 0] * levels + codes[:, 1]) * levels + codes[:, 2]
    labels = torch.zeros(codes.shape, dtype=torch.int64)
    owner = []
    for index, code in enumerate(codes.cpu().numpy()):
        areas = label(code, background=-1, connectivity=1)
        rim = numpy.concatenate([areas[0], areas[-1], areas[:, 0], areas[:, -1]])
        values, counts = numpy.unique(rim, return_counts=True)
        background = values[counts > rim.size // 2]
        # A pixel is inside where its whole neighbourhood has its label.
        size = 2 * border + 1
        inside = (minimum_filter(areas, size) == areas) & (-minimum_filter(-areas, size) == areas)
        areas = numpy.where(inside & ~numpy.isin(areas, background), areas, 0)
        for region in regionprops(areas):
            if region.area >= min_area:
                owner.append(index)
                labels[index][torch.from_numpy(areas == region.label)] = len(owner)
    return Regions(labels.to(images.device), torch.tensor(owner, dtype=torch.int64, device=images.device))


def color_deviation(images: Tensor, regions: Regions) -> tuple[Tensor, Tensor]:
    """How much color varies where the truth has one color.

    A region's deviation is the root of its color variance, mean over the three channels (population
    variance).

    Args:
        images: (B, 3, H, W) in [0, 1], generated.
        regions: `color_regions(truth)`.

    Returns:
        (sums, counts), float64, (B,) each: deviations summed over an image's regions, and the regions'
        number. sums.sum() / counts.sum() is the mean over all regions.
    """
    n = len(regions.image)
    flat = regions.labels.flatten()
    pixels = images.double().movedim(1, -1).reshape(-1, 3)
    area = torch.bincount(flat, minlength=n + 1).double().clamp_min(1)[:, None]
    mean = pixels.new_zeros(n + 1, 3).index_add_(0, flat, pixels) / area
    variance = pixels.new_zeros(n + 1, 3).index_add_(0, flat, (pixels - mean[flat]).square()) / area
    deviation = variance.mean(1).sqrt()[1:]
    sums = pixels.new_zeros(len(images)).index_add_(0, regions.image, deviation)
    counts = torch.bincount(regions.image, minlength=len(images)).double()
    return sums, counts


def palette(images: Tensor, mask: Tensor | None = None, levels: int = 4) -> Tensor:
    """The share of pixels in each of levels^3 colors; a pixel is spread over its neighbours in the cube.

    Args:
        images: (B, 3, H, W) in [0, 1].
        mask: (B, H, W) bool, the pixels that count; None for all.
        levels: nodes of the color cube along each channel.

    Returns:
        (B, levels^3); rows add up to 1, or are 0 where the mask is empty.
    """
    position = images.clamp(0, 1).flatten(2) * (levels - 1)
    low = position.floor().clamp_max(levels - 2).long()
    part = position - low
    weight = torch.ones_like(part[:, 0]) if mask is None else mask.flatten(1).to(part.dtype)
    shares = images.new_zeros(len(images), levels**3)
    for corner in range(8):
        bits = [(corner >> channel) & 1 for channel in range(3)]
        code = torch.zeros_like(low[:, 0])
        share = weight
        for channel, bit in enumerate(bits):
            code = code * levels + low[:, channel] + bit
            share = share * (part[:, channel] if bit else 1 - part[:, channel])
        shares.scatter_add_(1, code, share)
    return shares / shares.sum(1, keepdim=True).clamp_min(1e-12)


def palette_distance(first: Tensor, second: Tensor, mask: Tensor | None = None) -> Tensor:
    """Half the summed difference of two palettes: 0 for equal colors in equal amounts, 1 for none in common.

    Where things are does not matter.

    Args:
        first: (B, 3, H, W) in [0, 1].
        second: the same batch size.
        mask: (B, H, W) bool, the pixels of both that count; None for all.

    Returns:
        (B,) in [0, 1].
    """
    return (palette(first, mask) - palette(second, mask)).abs().sum(1) / 2
