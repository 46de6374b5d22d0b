"""`context-diffusion data folder`: pictures of one's own, ROOT/STYLE/PICTURE, in the shape of the emoji data set.

Each subfolder is a style. A picture's name says what it shows, so that the same name is the same content in every
style, and is held out in all of them or in none.
"""

from __future__ import annotations

import hashlib
import logging
import unicodedata
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from ..errors import ContextDiffusionError
from ..images import IMAGE_SUFFIXES, fit_image, image_from_pil, load_image_as_tensor, save_image
from .caption_files import read_captions
from .captions import words_of
from .index import attribution_text, open_folder, write_index
from .sources.render import check_leftovers, render_missing, render_svg

logger = logging.getLogger(__name__)

HELDOUT_SHARE = 0.15
SPLIT_SEED = "context-diffusion folder split 1"
# Training pictures of a style, at the least: eight are a whole batch's group.
SMALLEST_STYLE = 8
SUFFIXES = IMAGE_SUFFIXES | {".svg"}

NOT_A_PICTURE, SAME_NAME, NAME = "not a picture", "another of the same name", "a name that is not UTF-8"
UNREADABLE, TOO_SMALL, BLANK = "unreadable", "too small", "blank"
DUPLICATE, FEW = "duplicate", f"of a style with fewer than {SMALLEST_STYLE} pictures to train on"


@dataclass
class _Pictures:
    """What of ROOT becomes the data set.

    Attributes:
        sources: style -> key -> file.
        skipped: reason -> the files that are left out, as STYLE/PICTURE.
    """

    sources: dict[str, dict[str, Path]] = field(default_factory=dict)
    skipped: dict[str, list[str]] = field(default_factory=dict)

    def skip(self, path: Path, reason: str) -> None:
        name = f"{path.parent.name}/{path.name}".encode(errors="replace").decode()
        logger.info("left out, %s: %s", reason, name)
        self.skipped.setdefault(reason, []).append(name)

    def remove(self, style: str, key: str, reason: str) -> None:
        self.skip(self.sources[style].pop(key), reason)


def build_folder(
    out: Path,
    images: Path,
    size: int = 128,
    workers: int = 2,
    heldout: float = HELDOUT_SHARE,
    quiet: bool | None = None,
) -> dict:
    """Bring the pictures to one size and write the data set; what is there already, and not older, is kept.

    Writes `images/STYLE/KEY.png` (RGB, centred on white), `ATTRIBUTION.md` and, last of all, `index.json`, all as
    `build_emoji` does: `EmojiLibrary` reads both.

    Args:
        out: the data set's folder.
        images: ROOT, with one subfolder a style. Captions: see `caption_files.read_captions`; else a picture's name.
        size: side of the images in pixels.
        workers: processes that render.
        heldout: share of the names, in [0, 1), that training never sees; which ones, their hash decides.
        quiet: hide the progress bar; None hides it off a terminal.

    Returns:
        The index: `size`, `emoji` (key -> name, group, subgroup, keywords, heldout), `styles`, and `skipped`
        (reason -> files).

    Raises:
        ContextDiffusionError: ROOT has no style with enough pictures, a caption cannot be read, or the data set's
            folder lies in ROOT, holds other pictures or images of another size, or cannot be written.
    """
    if not 0 <= heldout < 1:
        raise ContextDiffusionError(f"the held-out share is {heldout}: give a number from 0 up to, but not, 1")
    pictures = _find(out, images)
    captions = read_captions(images, [path for style in pictures.sources.values() for path in style.values()])
    open_folder(out, size)
    _render(out, pictures, size, workers, quiet)
    digests = _check_pixels(out, pictures)
    names = sorted({key for style in pictures.sources.values() for key in style})
    ranked = sorted(names, key=lambda name: hashlib.sha256(f"{SPLIT_SEED}:{name}".encode()).digest())
    held = set(ranked[: max(1, round(heldout * len(names)))] if heldout else ())
    for style, files in list(pictures.sources.items()):
        if len(files.keys() - held) < SMALLEST_STYLE:
            for key in list(files):
                pictures.remove(style, key, FEW)
            del pictures.sources[style]
    if not pictures.sources:
        raise ContextDiffusionError(
            f"{images} has no style with {SMALLEST_STYLE} pictures to train on "
            f"({count_skipped(pictures.skipped)}): put more pictures into each of its subfolders, or hold out fewer"
        )
    emoji, styles = {}, {}
    for style, files in pictures.sources.items():
        own = {}
        for key, path in files.items():
            text = captions.get(path)
            name = text or " ".join(words_of(path.stem))
            entry = {"name": name, "group": "", "subgroup": "", "keywords": [], "heldout": key in held}
            if text and emoji.setdefault(key, entry)["name"] != text:
                own[key] = text
            emoji.setdefault(key, entry)
        styles[style] = {
            "words": " ".join(words_of(style)) or style,
            "heldout": False,
            "licence": "",
            "attribution": "",
            "images": len(files),
            "captions": own,
            "pixels": hashlib.sha256("".join(digests[style, key] for key in sorted(files)).encode()).hexdigest()[:16],
        }
    index = {"format": 1, "size": size, "emoji": emoji, "styles": styles, "skipped": pictures.skipped}
    write_index(out, index, attribution_text([(style, "see its source", "see its source") for style in styles]))
    return index


def _find(out: Path, root: Path) -> _Pictures:
    """The pictures of every style, by name."""
    if not root.is_dir():
        raise ContextDiffusionError(
            f"--images {root} {'is a file' if root.exists() else 'does not exist'}; give a folder with one subfolder "
            "for each style"
        )
    ours, theirs = out.resolve(), root.resolve()
    if ours == theirs or theirs in ours.parents or ours in theirs.parents:
        raise ContextDiffusionError(f"--out {out} and --images {root} lie in each other: give another --out folder")
    folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not folders:
        raise ContextDiffusionError(
            f"--images {root} has no subfolders: put the pictures of each style into a subfolder, {root}/STYLE/PICTURE"
        )
    pictures = _Pictures()
    for folder in folders:
        files = pictures.sources[folder.name] = {}
        for path in sorted(folder.iterdir()):
            if path.name.startswith(".") or not path.is_file() or path.suffix.lower() in (".txt", ".json"):
                continue
            # One name on every disk and in every style, whatever its case and however its accents are written.
            key = unicodedata.normalize("NFC", path.stem).casefold()
            if path.suffix.lower() not in SUFFIXES:
                pictures.skip(path, NOT_A_PICTURE)
            elif not _is_text(f"{folder.name}{path.name}"):
                pictures.skip(path, NAME)
            elif key in files:
                pictures.skip(path, SAME_NAME)
            else:
                files[key] = path
    return pictures


def _render(out: Path, pictures: _Pictures, size: int, workers: int, quiet: bool | None) -> None:
    """Make the images that are missing or older than their pictures."""
    jobs, places = [], {}
    for style, files in pictures.sources.items():
        for key, source in files.items():
            target = out / "images" / style / f"{key}.png"
            places[target] = style, key
            jobs.append((source, target, size))
    check_leftovers(out / "images", jobs, "pictures")
    for source, target, _ in jobs:
        if target.exists() and target.stat().st_mtime < source.stat().st_mtime:
            target.unlink()
    for (_, target, _), reason in render_missing(out, jobs, workers, "pictures", quiet, bring_to_size):
        if reason:
            pictures.remove(*places[target], reason)


def bring_to_size(job: tuple[Path, Path, int]) -> str | None:
    """One picture -> one RGB PNG, centred on white, written whole or not at all.

    Args:
        job: the picture's file, the file to write and the side in pixels; one argument, so that a pool can map it.

    Returns:
        Why there is none, or None.
    """
    source, target, size = job
    try:
        if source.suffix.lower() == ".svg":
            image = image_from_pil(render_svg(source.read_text("utf-8-sig"), size), size, fit="pad")
        else:
            image = load_image_as_tensor(source)
            if max(image.shape[-2:]) < size // 4:
                return TOO_SMALL
            image = fit_image(image, size, "pad")
    except (ContextDiffusionError, ValueError, OSError) as error:
        logger.info("%s: %s", source, error)
        return UNREADABLE
    save_image(image, target)
    return None


def _check_pixels(out: Path, pictures: _Pictures) -> dict[tuple[str, str], str]:
    """Leave out images of one color, and those that another name has already: the split must not hold copies.

    Returns:
        (style, key) -> digest of the pixels.
    """
    names: dict[str, str] = {}
    digests = {}
    for style, files in pictures.sources.items():
        for key in sorted(files):
            target = out / "images" / style / f"{key}.png"
            with Image.open(target) as image:
                pixels = np.asarray(image.convert("RGB"))
            digest = digests[style, key] = hashlib.sha256(pixels.tobytes()).hexdigest()
            blank = bool((pixels == pixels[0, 0]).all())
            if blank or names.setdefault(digest, key) != key:
                pictures.remove(style, key, BLANK if blank else DUPLICATE)
                target.unlink()
    return digests


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def count_skipped(skipped: dict[str, list[str]]) -> str:
    """How many pictures were left out, by reason, in words."""
    counts = [f"{len(files):,} {reason}" for reason, files in skipped.items()]
    return f"{sum(map(len, skipped.values())):,} left out: {', '.join(counts)}" if counts else "none left out"
