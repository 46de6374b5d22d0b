"""In-context episodes over plain image folders: each subfolder is one style, or one task."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import TypedDict

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..errors import ContextDiffusionError
from ..images import check_size, list_images, load_image_as_tensor
from ..images.fit import Color, Size

logger = logging.getLogger(__name__)


class Episode(TypedDict):
    """One example to learn from."""

    target: Tensor  # (3, S, S) in [0, 1]
    context: Tensor  # (k, 3, S, S) in [0, 1], other pictures of the target's folder
    caption: str  # of the target, empty where there is none
    style: str  # the folder's name


class ImageFolderDataset(Dataset):
    """Pictures in subfolders; context images are other pictures of the target's own subfolder.

    ROOT/STYLE/PICTURE.png, with captions, where there are any, in ROOT/STYLE/PICTURE.txt, in
    ROOT/STYLE/captions.json ({"PICTURE.png": "text"}) or in ROOT/captions.json ({"STYLE/PICTURE.png":
    "text"}); the first that is found counts. Hidden files and files that are no images are left out.

    As a torch dataset its items are episodes with `k` context images whose choice depends on `seed`, the
    epoch and the index alone: equal for any number of workers.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        size: Size = 128,
        k: int = 3,
        *,
        fit: str = "crop",
        background: Color = "white",
        seed: int = 0,
    ) -> None:
        """Find the pictures; none is opened yet.

        Args:
            root: the folder with the subfolders.
            size: side of the pictures, or (height, width), in pixels.
            k: context images of an item.
            fit: `crop`, `pad` or `stretch`, see `fit_image`.
            background: colour under transparent pixels and around padded pictures.
            seed: for the choice of context images.

        Raises:
            ContextDiffusionError: no such folder, no subfolders, one with fewer than two pictures or too
                few for k, or captions that cannot be read.
        """
        self.root, self.size, self.k = Path(root), check_size(size), k
        self.fit, self.background, self.seed, self.epoch = fit, background, seed, 0
        if not self.root.is_dir():
            state = "is a file" if self.root.exists() else "does not exist"
            raise ContextDiffusionError(
                f"data folder {self.root} {state}; give a folder with one subfolder for each style"
            )
        folders = sorted(p for p in self.root.iterdir() if p.is_dir() and not p.name.startswith("."))
        if not folders:
            raise ContextDiffusionError(
                f"data folder {self.root} has no subfolders; put the pictures of each style into a subfolder"
            )
        self.styles: dict[str, list[Path]] = {}
        for folder in folders:
            pictures = list_images(folder)
            if len(pictures) < 2:
                raise ContextDiffusionError(
                    f"subfolder {folder} holds {len(pictures)} pictures, expected at least 2 (a "
                    "target and its context); add some or remove the subfolder"
                )
            self.styles[folder.name] = pictures
        for style in self.styles:
            self._check_k(k, style)
        self._items = [(name, number) for name, paths in self.styles.items() for number in range(len(paths))]
        self._captions = {path: _read_caption(path) for paths in self.styles.values() for path in paths}
        self._add_json_captions([self.root / style for style in self.styles] + [self.root])

    def __len__(self) -> int:
        """Number of pictures, each of which is the target of one item."""
        return len(self._items)

    def __getitem__(self, index: int) -> Episode:
        """Episode `index` of this epoch, with `self.k` context images."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} of a data set of {len(self)} pictures")
        # One integer from three: any other choice of constants would do, as long as few triples collide.
        mixed = (self.seed * 1_000_003 + self.epoch) * 1_000_003 + index % len(self)
        return self.sample(index, self.k, torch.Generator().manual_seed(mixed % 2**63))

    def set_epoch(self, epoch: int) -> None:
        """Change the context images that items get. Call it before the data loader's workers start."""
        self.epoch = epoch

    def sample(self, index: int, k: int, generator: torch.Generator | None = None) -> Episode:
        """One episode: picture `index` as the target, k different others of its folder as context.

        Args:
            index: 0 to len - 1.
            k: number of context images, 0 to one less than the folder holds.
            generator: for the choice and order of the context images.

        Raises:
            ContextDiffusionError: k that the folder cannot give, or a picture that cannot be read.
        """
        style, number = self._items[index]
        self._check_k(k, style)
        paths = self.styles[style]
        others = [path for other, path in enumerate(paths) if other != number]
        chosen = torch.randperm(len(others), generator=generator)[:k].tolist()
        context = [self._load(others[choice]) for choice in chosen]
        return {
            "target": self._load(paths[number]),
            "context": torch.stack(context) if context else torch.zeros(0, 3, *self.size),
            "caption": self._captions[paths[number]] or "",
            "style": style,
        }

    def _load(self, path: Path) -> Tensor:
        return load_image_as_tensor(path, self.size, fit=self.fit, background=self.background)

    def _check_k(self, k: int, style: str) -> None:
        most = len(self.styles[style]) - 1
        if not 0 <= k <= most:
            raise ContextDiffusionError(
                f"k is {k}, but subfolder {self.root / style} with {most + 1} pictures can give 0 to {most} "
                "context images; change k or add pictures"
            )

    def _add_json_captions(self, folders: list[Path]) -> None:
        """Fill in captions that no text file gave; earlier folders come first."""
        for folder in folders:
            file = folder / "captions.json"
            if not file.is_file():
                continue
            unknown = 0
            for name, caption in _read_json_captions(file).items():
                path = folder / name
                if path not in self._captions:
                    unknown += 1
                elif self._captions[path] is None:
                    self._captions[path] = caption
            if unknown:
                logger.warning("%s names %d pictures that are not in the data set", file, unknown)


def _read_caption(picture: Path) -> str | None:
    """The text file beside a picture, or None."""
    file = picture.with_suffix(".txt")
    if not file.is_file():
        return None
    try:
        return file.read_text(encoding="utf-8-sig").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ContextDiffusionError(f"caption {file} cannot be read as UTF-8 text ({error})") from error


def _read_json_captions(file: Path) -> dict[str, str]:
    try:
        captions = json.loads(file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise ContextDiffusionError(f"{file} cannot be read as JSON ({error})") from error
    if not isinstance(captions, dict) or not all(isinstance(text, str) for text in captions.values()):
        raise ContextDiffusionError(f'{file}: expected {{"PICTURE.png": "caption", ...}}, texts alone')
    return captions
