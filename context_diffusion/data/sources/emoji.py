"""`context-diffusion data emoji`: nine emoji styles as 128 px images with captions, groups, licences and a split."""

from __future__ import annotations

import hashlib
import json
import logging
from collections import defaultdict
from pathlib import Path

from tqdm import tqdm

from ...errors import ContextDiffusionError
from ..index import attribution_text, open_folder, write_index
from .emoji_styles import (
    CAPTION_PACKAGES,
    EMOJIBASE,
    EMOJILIB,
    OPENMOJI,
    STYLES,
    UNICODE_EMOJI_JSON,
    emoji_key,
    has_skin_tone,
    slug_table,
)
from .packages import fetch_package, read_archive
from .render import render_missing

logger = logging.getLogger(__name__)

HELDOUT_SHARE = 0.15
SPLIT_SEED = "context-diffusion emoji split 1"
SUBSET_SEED = "context-diffusion emoji subset 1"


def build_emoji(
    out: Path, size: int = 128, workers: int = 2, quiet: bool | None = None, limit: int | None = None
) -> dict:
    """Fetch the pinned packages, render every style and write the data set; what is there already is kept.

    Writes `packages/*.tgz`, `images/STYLE/KEY.png` (RGB over white), `ATTRIBUTION.md` and, last of all, `index.json`.

    Args:
        out: the data set's folder.
        size: side of the images in pixels.
        workers: processes that render.
        quiet: hide progress bars; None hides them off a terminal.
        limit: take this many emoji of all, see `take_subset`; None takes every one.

    Returns:
        The index: `size`, `emoji` (key -> name, group, subgroup, keywords, heldout), `styles`.

    Raises:
        ContextDiffusionError: a package cannot be fetched or is not the pinned one, or the folder holds images
            of another size or of emoji beyond the limit, or cannot be written.
    """
    open_folder(out, size)
    packages = {style.package.name: style.package for style in STYLES}
    packages.update({package.name: package for package in CAPTION_PACKAGES})
    archives = {
        name: fetch_package(package, out / "packages")
        for name, package in tqdm(packages.items(), desc="packages", disable=quiet)
    }
    emoji = read_emoji(archives)
    if limit is not None:
        emoji = take_subset(emoji, limit)
        _check_limit(out / "images", emoji, limit)
    slugs = slug_table(archives)
    counts = {}
    for style in STYLES:
        pictures = style.pictures(archives[style.package.name], slugs)
        wanted = {key: picture for key, picture in pictures.items() if key in emoji}
        counts[style.name] = len(wanted)
        folder = out / "images" / style.name
        jobs = [(picture, folder / f"{key}.png", size) for key, picture in wanted.items()]
        render_missing(out, jobs, workers, style.name, quiet)
    index = {
        "format": 1,
        "size": size,
        "emoji": emoji,
        "styles": {
            style.name: {
                "words": style.words,
                "heldout": style.heldout,
                "licence": style.package.licence,
                "attribution": style.package.attribution,
                "images": counts[style.name],
            }
            for style in STYLES
        },
    }
    write_index(out, index, emoji_attribution())
    return index


def read_emoji(archives: dict[str, Path]) -> dict[str, dict]:
    """Names, groups, keywords and the fixed split of every emoji, without flags and skin tones.

    Args:
        archives: package name -> archive path.

    Returns:
        key -> {name, group, subgroup, keywords, heldout}, in Unicode's order.
    """

    def read(package: object, path: str) -> object:
        return json.loads(read_archive(archives[package.name], path)[path])

    def key_of(emoji: str) -> str:
        return emoji_key("-".join(f"{ord(char):x}" for char in emoji))

    keywords = defaultdict(list)
    for emoji, words in read(EMOJILIB, "dist/emoji-en-US.json").items():
        keywords[key_of(emoji)] += [word.replace("_", " ") for word in words]
    for entry in read(EMOJIBASE, "en/data.json"):
        keywords[emoji_key(entry["hexcode"])] += entry.get("tags", [])
    subgroups = {emoji_key(entry["hexcode"]): entry["subgroups"] for entry in read(OPENMOJI, "data/openmoji.json")}
    emoji = {}
    for char, entry in read(UNICODE_EMOJI_JSON, "data-by-emoji.json").items():
        key = key_of(char)
        if entry["group"] == "Flags" or has_skin_tone(key):
            continue
        # Emoticons such as ":-)" among the keywords are no words.
        words = dict.fromkeys(word.lower() for word in keywords[key] if any(char.isalpha() for char in word[1:]))
        words.pop(entry["name"].lower(), None)
        emoji[key] = {
            "name": entry["name"].lower(),
            "group": entry["group"].lower().replace(" & ", " "),
            "subgroup": subgroups.get(key, entry["group"].lower()).replace("-", " "),
            "keywords": list(words)[:16],
        }
    heldout = split_heldout({key: entry["group"] for key, entry in emoji.items()})
    for key, entry in emoji.items():
        entry["heldout"] = key in heldout
    return emoji


def split_heldout(groups: dict[str, str], share: float = HELDOUT_SHARE) -> set[str]:
    """The held-out keys: the same share of every group, chosen by hash so that the order of input does not matter.

    Args:
        groups: key -> group.
        share: part of each group that is held out, 0 to 1.
    """
    by_group = defaultdict(list)
    for key, group in groups.items():
        by_group[group].append(key)
    heldout = set()
    for keys in by_group.values():
        keys = sorted(keys, key=lambda key: hashlib.sha256(f"{SPLIT_SEED}:{key}".encode()).digest())
        heldout.update(keys[: round(share * len(keys))])
    return heldout


def take_subset(emoji: dict[str, dict], limit: int) -> dict[str, dict]:
    """Some of the emoji, chosen by hash: a smaller subset is a part of every larger one.

    Args:
        emoji: key -> anything, from `read_emoji`. The split was made before: what is held out here is held out in
            the whole data set too.
        limit: how many; all of them where there are fewer.

    Returns:
        The chosen entries, in the order they came in.
    """
    order = sorted(emoji, key=lambda key: hashlib.sha256(f"{SUBSET_SEED}:{key}".encode()).digest())
    chosen = set(order[:limit])
    return {key: entry for key, entry in emoji.items() if key in chosen}


def emoji_attribution() -> str:
    """The attributions and licences of the emoji and of their captions, as Markdown."""
    rows = [(style.name, style.package.attribution, style.package.licence) for style in STYLES]
    return attribution_text(
        [*rows, *(("captions", package.attribution, package.licence) for package in CAPTION_PACKAGES)]
    )


def _check_limit(folder: Path, emoji: dict[str, dict], limit: int) -> None:
    """Images of an earlier, larger run would be in the data set without an entry in its index."""
    if any(path.stem not in emoji for path in folder.glob("*/*.png")):
        raise ContextDiffusionError(
            f"{folder} holds images of more emoji than --limit {limit}: give another --out folder"
        )
