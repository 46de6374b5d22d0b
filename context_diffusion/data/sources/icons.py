"""`context-diffusion data icons`: sets of icons as more styles to learn from, in the shape of the emoji data set.

An icon set is what the model is for: many pictures drawn alike. Whole sets are held out; from the others is left out,
by name, what the emoji data set holds out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from tqdm import tqdm

from ...errors import ContextDiffusionError
from ..captions import words_of
from ..index import attribution_text, open_folder, read_index, write_index
from .icon_styles import ICON_SETS, IconSet
from .iconify import IconSheet, read_sheet
from .packages import fetch_package
from .render import check_leftovers, render_missing

SUBSET_SEED = "context-diffusion icons subset 1"
# A subgroup is what episodes draw runs of four from.
SMALLEST_SUBGROUP = 4


def build_icons(
    out: Path, emoji: Path, size: int = 128, workers: int = 2, limit: int = 500, quiet: bool | None = None
) -> dict:
    """Fetch the pinned packages, render every style and write the data set; what is there already is kept.

    Writes `packages/*.tgz`, `images/STYLE/KEY.png` (RGB over white), `ATTRIBUTION.md` and, last of all, `index.json`,
    all as `build_emoji` does: `EmojiLibrary` reads both.

    Args:
        out: the data set's folder.
        emoji: the emoji data set's folder; icons of its held-out emoji are left out, see `shows`.
        size: side of the images in pixels.
        workers: processes that render.
        limit: icons of a set at the most, chosen by hash; each in all variants of the set.
        quiet: hide progress bars; None hides them off a terminal.

    Returns:
        The index: `size`, `emoji` (key -> name, group, subgroup, keywords, heldout), `styles`.

    Raises:
        ContextDiffusionError: there is no emoji data set, a package cannot be fetched or is not the pinned one, or the
            folder holds images of another size or cannot be written.
    """
    heldout = _heldout_names(emoji)
    open_folder(out, size)
    entries: dict[str, dict] = {}
    styles: dict[str, dict] = {}
    jobs: list[tuple[bytes, Path, int]] = []
    for icon_set in tqdm(ICON_SETS, desc="packages", disable=quiet):
        sheet = read_sheet(fetch_package(icon_set.package, out / "packages"))
        drawings = split_variants(icon_set, sheet)
        names = choose_names(drawings, () if icon_set.heldout else heldout, limit)
        entries |= {f"{icon_set.name}.{name}": entry for name, entry in _entries(icon_set, sheet, names).items()}
        for variant, pictures in drawings.items():
            style = f"{icon_set.name}-{variant}" if variant else icon_set.name
            drawn = {name: pictures[name] for name in names if name in pictures}
            jobs += [
                (picture, out / "images" / style / f"{icon_set.name}.{name}.png", size)
                for name, picture in drawn.items()
            ]
            styles[style] = {
                "words": f"{icon_set.variants[variant]} {icon_set.words}".strip(),
                "heldout": icon_set.heldout,
                "set": icon_set.name,
                "licence": icon_set.package.licence,
                "attribution": icon_set.package.attribution,
                "images": len(drawn),
            }
    check_leftovers(out / "images", jobs, "icons")
    render_missing(out, jobs, workers, "icons", quiet)
    index = {"format": 1, "size": size, "emoji": entries, "styles": styles}
    rows = [(each.name, each.package.attribution, each.package.licence) for each in ICON_SETS]
    write_index(out, index, attribution_text(rows))
    return index


def split_variants(icon_set: IconSet, sheet: IconSheet) -> dict[str, dict[str, bytes]]:
    """A set's icons by variant: variant -> name without its end -> SVG.

    Of one drawing in several sizes the best is taken; names with the end of no variant are left out where "" is none.
    """
    if icon_set.sizes:
        chosen: dict[str, bytes] = {}
        for end in icon_set.sizes:
            for name, picture in sheet.pictures.items():
                if name.endswith(f"-{end}"):
                    chosen.setdefault(name.removesuffix(f"-{end}"), picture)
        return {"": chosen}
    drawings: dict[str, dict[str, bytes]] = {variant: {} for variant in icon_set.variants}
    # The longest end first: `bold-duotone` ends with `duotone` too.
    ends = sorted((end for end in icon_set.variants if end), key=len, reverse=True)
    for name, picture in sheet.pictures.items():
        end = next((end for end in ends if name.endswith(f"-{end}")), "")
        if end in drawings:
            drawings[end][name.removesuffix(f"-{end}")] = picture
    return drawings


def choose_names(drawings: dict[str, dict[str, bytes]], heldout: Iterable[str], limit: int) -> list[str]:
    """Names of a set to take, by hash: those that most variants have first, none that shows a held-out emoji.

    Args:
        drawings: from `split_variants`.
        heldout: names of held-out emoji.
        limit: how many at the most.
    """
    heldout = [frozenset(words_of(name)) for name in heldout]
    variants = {
        name: sum(name in pictures for pictures in drawings.values()) for each in drawings.values() for name in each
    }
    order = sorted(
        variants,
        key=lambda name: (-variants[name], hashlib.sha256(f"{SUBSET_SEED}:{name}".encode()).digest()),
    )
    return [name for name in order if not shows(name, heldout)][:limit]


def shows(name: str, contents: Iterable[frozenset[str]]) -> bool:
    """Whether an icon's name has all words of one of the contents: `tent-night` shows `tent`."""
    words = set(words_of(name))
    return any(content and content <= words for content in contents)


def _entries(icon_set: IconSet, sheet: IconSheet, names: list[str]) -> dict[str, dict]:
    """Name -> what the index says of an icon. Subgroups are the set's categories, else first words of names."""
    categories: dict[str, str] = {}
    for full, category in sheet.categories.items():
        for end in ("", *icon_set.variants):
            categories.setdefault(full.removesuffix(f"-{end}"), category)
    subgroups = {name: categories.get(name) or (words_of(name) or [""])[0] for name in names}
    sizes: dict[str, int] = {}
    for subgroup in subgroups.values():
        sizes[subgroup] = sizes.get(subgroup, 0) + 1
    return {
        name: {
            "name": " ".join(words_of(name)) or name,
            "group": "icons",
            "subgroup": subgroups[name] if sizes[subgroups[name]] >= SMALLEST_SUBGROUP else "icons",
            "keywords": [],
            "heldout": icon_set.heldout,
        }
        for name in names
    }


def _heldout_names(emoji: Path) -> list[str]:
    index = read_index(emoji)
    if any("set" in style for style in index["styles"].values()):
        # Its held-out icons are others than the emoji that must not be learned.
        raise ContextDiffusionError(f"{emoji} is an icon data set: give --emoji the folder that `data emoji` wrote")
    return [entry["name"] for entry in index["emoji"].values() if entry["heldout"]]
