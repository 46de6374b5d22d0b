"""A pool of ready episode groups on disk: pictures, queries, latents and captions, computed once and memory-mapped.

What stays frozen in the diffusion stage (style transforms, maps, the VAE's latents) costs more than a training step
when it is made anew for each one. The processes of a run fill the pool together, each its own groups, and a killed
run goes on where it was.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ...data.mixture import Mixture
from ...data.transforms import TRAIN_FAMILIES
from ...errors import ContextDiffusionError
from ...files import write_atomically
from ..run.loop import batch_seed
from .groups import draw_group

GROUP_SIZE = 16
_NO_MORE_DATA = {"icons": "", "icon_share": 0.0, "own": "", "own_share": 0.0}


class EpisodePool:
    """`groups` groups of 16 pictures.

    Args:
        folder: where the arrays lie; made when missing.
        mixture: the data sets that groups are drawn from.
        groups: how many.
        shares: kind -> share of the groups, see `draw_group`.
        seed: of every group.
        encode: images (B, 3, H, W) in [0, 1] -> scaled latents (B, C, h, w).
        latent_shape: (C, h, w).
        encoder: says which weights `encode` has.

    Raises:
        ContextDiffusionError: the folder holds a pool that was made with other settings.
    """

    def __init__(
        self,
        folder: Path,
        mixture: Mixture,
        groups: int,
        shares: dict[str, float],
        seed: int,
        encode: Callable[[Tensor], Tensor],
        latent_shape: tuple[int, int, int],
        encoder: str = "",
    ) -> None:
        self.folder, self.mixture, self.groups, self.seed = folder, mixture, groups, seed
        self.encode = encode
        self.kinds = list(shares)
        # Kinds are dealt out evenly over the pool, so that any part of it has all of them.
        edges = np.cumsum(list(shares.values())) / sum(shares.values())
        self._kind_of = np.searchsorted(edges, (np.arange(groups) * 0.618034) % 1.0, side="right")
        size = mixture.library.size
        shapes = {
            "images": ((size, size, 3), np.uint8),
            "queries": ((size, size, 3), np.uint8),
            "other_queries": ((size, size, 3), np.uint8),
            "latents": (latent_shape, np.float16),
        }
        folder.mkdir(parents=True, exist_ok=True)
        made_with = {"seed": seed, "shares": shares, "encoder": encoder, "transforms": list(TRAIN_FAMILIES)}
        made_with |= {"data": mixture.library.digest, **_NO_MORE_DATA}
        for name, (library, share) in mixture.others.items():
            made_with |= {name: library.digest, f"{name.removesuffix('s')}_share": share}
        _check_settings(folder / "settings.json", made_with)
        self.arrays = {
            name: _open(folder / f"{name}.npy", (groups, GROUP_SIZE, *shape), dtype)
            for name, (shape, dtype) in shapes.items()
        }
        self.done = _open(folder / "done.npy", (groups,), np.uint8)
        self._texts: dict[int, dict] = {}

    def fill(self, rank: int = 0, world: int = 1) -> None:
        """Make the groups of this process that are not there yet."""
        missing = [index for index in range(rank, self.groups, world) if not self.done[index]]
        for index in tqdm(missing, desc="episode pool", disable=None if rank == 0 else True):
            rng = np.random.default_rng(batch_seed(self.seed, index, 0, 7))
            group = draw_group(self.mixture.draw(rng), rng, self.kinds[self._kind_of[index]], GROUP_SIZE)
            self.arrays["images"][index] = _to_bytes(group.images)
            self.arrays["queries"][index] = _to_bytes(group.queries)
            self.arrays["other_queries"][index] = _to_bytes(group.other_queries)
            self.arrays["latents"][index] = self.encode(group.images).half().numpy()
            text = json.dumps(
                {"kind": group.kind, "style": group.style, "keys": group.keys, "captions": group.captions}
            )
            (self.folder / f"{index:05d}.json").write_text(text)
            self.done[index] = 1
        for array in (*self.arrays.values(), self.done):
            array.flush()

    def pictures(self, name: str, group: int, members: np.ndarray) -> Tensor:
        """`images`, `queries` or `other_queries` of some members, (n, 3, H, W) in [0, 1]."""
        return torch.from_numpy(self.arrays[name][group][members]).permute(0, 3, 1, 2).float() / 255

    def latents(self, group: int, members: np.ndarray) -> Tensor:
        """Scaled latents of some members, (n, C, h, w)."""
        return torch.from_numpy(self.arrays["latents"][group][members]).float()

    def captions(self, group: int) -> list[list[str]]:
        """The captions of each member."""
        return self._text(group)["captions"]

    def distinct(self, group: int) -> int:
        """How many of the members are different pictures: the first ones, which a small style's others repeat."""
        return len(set(self._text(group)["keys"]))

    def _text(self, group: int) -> dict:
        if group not in self._texts:
            self._texts[group] = json.loads((self.folder / f"{group:05d}.json").read_text())
        return self._texts[group]


def _check_settings(path: Path, settings: dict) -> None:
    """Latents of an earlier autoencoder, or groups of another seed, must not be taken for this run's."""
    if not path.exists():
        with write_atomically(path) as scratch:
            scratch.write_text(json.dumps(settings, indent=1))
    # Pools from before these were written: of the data nothing is known, and no share was none.
    older = {**_NO_MORE_DATA, "data": settings["data"], "icons": settings["icons"]}
    before = {**older, **json.loads(path.read_text())}
    changed = [name for name in settings if before.get(name) != settings[name]]
    if changed:
        raise ContextDiffusionError(
            f"{path.parent} was made with another {' and '.join(changed)}: remove that folder to make it anew"
        )


def _open(path: Path, shape: tuple[int, ...], dtype: type) -> np.memmap:
    """A memory-mapped .npy file of zeros, made once however many processes come at the same time."""
    if not path.exists():
        scratch = path.with_suffix(f".{np.random.default_rng().integers(1 << 62)}.tmp")
        np.lib.format.open_memmap(scratch, mode="w+", dtype=dtype, shape=shape).flush()
        try:
            # A hard link fails where the file exists: the second process takes the first one's.
            path.hardlink_to(scratch)
        except FileExistsError:
            pass
        finally:
            scratch.unlink()
    array = np.lib.format.open_memmap(path, mode="r+")
    if array.shape != shape:
        raise ContextDiffusionError(
            f"{path} was made for other settings (shape {array.shape}, now {shape}): remove its folder to make it anew"
        )
    return array


def _to_bytes(images: Tensor) -> np.ndarray:
    return (images.permute(0, 2, 3, 1) * 255).round().clamp(0, 255).byte().numpy()
