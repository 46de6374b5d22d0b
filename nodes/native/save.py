"""What the host's own Save nodes write of our MODEL: one of our checkpoints, for our loader and for the core.

Those nodes ask a MODEL how its weights, and those of the CLIP and the VAE beside it, are called in a file. Here they
get a checkpoint's names, LoRAs and merges in the weights. The parts that they hand over nothing of are copied from the
file that the MODEL was loaded from, so that every such file is a whole model.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from ...context_diffusion.checkpoint.header import DTYPES
from ...context_diffusion.checkpoint.read import Checkpoint, open_checkpoint
from ...context_diffusion.checkpoint.saved import SAVED_KEY, metadata_tensor
from ...context_diffusion.errors import ContextDiffusionError
from ..folders import file_state
from .vae import native_weights

logger = logging.getLogger(__name__)


class WholeModel:
    """The host's names of weights -> a checkpoint's, for `ModelConfig`.

    Args:
        path: the file that the MODEL was loaded from.
        unet_names: the host's name of each weight of the UNet -> its name in the file.
    """

    def __init__(self, path: Path, unet_names: Mapping[str, str]) -> None:
        self._path, self._state, self._unet_names = path, file_state(path), unet_names

    def with_unet(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The model with these weights of its UNet, everything else as it is in the file.

        Raises:
            ContextDiffusionError: the file is another one by now, or gone.
        """
        with self._open() as checkpoint:
            parts = [name for name in checkpoint.configs if name != "unet"]
            whole = {key: tensor for name in parts for key, tensor in checkpoint.file.read(name)}
            whole[SAVED_KEY] = metadata_tensor(checkpoint.file.metadata)
        return whole | {f"unet.{name}": _storable(weights[key]) for key, name in self._unet_names.items()}

    def text_encoder(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A CLIP's weights; nothing, and a word in the log, for one of another shape than the file's."""
        with self._open() as checkpoint:
            names = {key: f"clip_l.transformer.{rest}" for key, rest in _of_part(checkpoint, "text_encoder")}
            return self._renamed(checkpoint, "CLIP", names, weights)

    def image_encoder(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A CLIP_VISION's weights, as `text_encoder`."""
        with self._open() as checkpoint:
            return self._renamed(checkpoint, "CLIP_VISION", dict(_of_part(checkpoint, "image_encoder")), weights)

    def vae(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A VAE's weights, as `text_encoder`."""
        with self._open() as checkpoint:
            names = {}
            if "vae" in checkpoint.configs:
                own = {key.partition(".")[2]: tensor for key, tensor in checkpoint.file.read("vae")}
                native = native_weights(self._path, checkpoint.configs["vae"], own)
                # The conversion renames and reshapes: what is in the same place is the same weight.
                places = {tensor.data_ptr(): key for key, tensor in native.items()}
                names = {f"vae.{key}": places[tensor.data_ptr()] for key, tensor in own.items()}
            return self._renamed(checkpoint, "VAE", names, weights)

    @contextmanager
    def _open(self) -> Iterator[Checkpoint]:
        if file_state(self._path) != self._state:
            raise ContextDiffusionError(
                f"{self._path} is gone, or another file than MODEL was loaded from, and the parts beside the UNet "
                "are copied from there: put it back, or load the model anew, and save again"
            )
        with open_checkpoint(self._path) as checkpoint:
            yield checkpoint

    def _renamed(
        self, checkpoint: Checkpoint, socket: str, names: Mapping[str, str], weights: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        if not names:
            logger.warning("%s has no %s: the one that is connected is not saved", self._path.name, socket)
        renamed = {}
        for key, name in names.items():
            shape, tensor = checkpoint.file.tensors[key].shape, weights.get(name)
            # The host writes some of a VAE's matrices as convolutions of one pixel.
            if tensor is None or tuple(tensor.shape[: len(shape)]) != shape:
                logger.warning(
                    "The saved model has the %s of %s: the one that is connected is of another kind, and no part of "
                    "that model",
                    socket,
                    self._path.name,
                )
                return {}
            # Weights that are patched as they are written lose that when they are reshaped.
            renamed[key] = _storable(tensor if tuple(tensor.shape) == shape else tensor.reshape(shape))
        return renamed


def _storable(tensor: Tensor) -> Tensor:
    """In a dtype that a checkpoint has: the host may keep weights in eight bits (--fp8_e4m3fn-unet, -text-enc)."""
    # On the CPU first: weights that are patched as they are written get that only when they go there.
    return tensor if tensor.dtype in DTYPES.values() else tensor.to("cpu").to(torch.float16)


def _of_part(checkpoint: Checkpoint, part: str) -> Iterator[tuple[str, str]]:
    """Names in the file, and the same without the part."""
    for key in checkpoint.file.tensors:
        name, _, rest = key.partition(".")
        if name == part:
            yield key, rest
