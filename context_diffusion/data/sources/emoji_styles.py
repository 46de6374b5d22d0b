"""The nine emoji styles: which package draws each, under which licence, and how its files are named."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass

from .iconify import icon_svg
from .packages import PACKAGES, Package, read_archive

OPENMOJI, NOTO = PACKAGES["openmoji"], PACKAGES["@iconify-json/noto"]
UNICODE_EMOJI_JSON, EMOJILIB = PACKAGES["unicode-emoji-json"], PACKAGES["emojilib"]
EMOJIBASE = PACKAGES["emojibase-data"]
CAPTION_PACKAGES = (UNICODE_EMOJI_JSON, EMOJILIB, EMOJIBASE)

SKIN_TONES = frozenset(f"1f3f{tone}" for tone in "bcdef")


@dataclass(frozen=True)
class Style:
    """One way of drawing every emoji.

    Attributes:
        name: our name of the style, also its folder.
        package: the package that carries it.
        words: how captions name it; empty for a held-out style, which has no word of its own.
        heldout: whether training never sees it.
        pictures: archive path, slug -> key table -> {key: SVG or WebP bytes}.
    """

    name: str
    package: Package
    words: str
    heldout: bool
    pictures: Callable[[object, dict[str, str]], dict[str, bytes]]


def emoji_key(hexcode: str) -> str:
    """A codepoint sequence as the key used everywhere: lower-case hex joined by `-`, fe0f dropped."""
    return "-".join(part for part in hexcode.lower().split("-") if part != "fe0f")


def slugify(name: str) -> str:
    """A CLDR name as icon sets spell it: `man’s shoe` -> `mans-shoe`."""
    name = re.sub(r"[’'“”.!]", "", name.lower().replace("&", "and").replace("ñ", "n").replace("é", "e"))
    return re.sub(r"[^a-z0-9*#]+", "-", name).strip("-")


def has_skin_tone(key: str) -> bool:
    """Whether a key is of an emoji with one of the five skin tones."""
    return not SKIN_TONES.isdisjoint(key.split("-"))


def _by_file_name(prefix: str, suffix: str) -> Callable:
    def pictures(archive: object, slugs: dict[str, str]) -> dict[str, bytes]:
        files = read_archive(archive, prefix, suffix)
        return {emoji_key(path[len(prefix) : -len(suffix)]): content for path, content in files.items()}

    return pictures


def _iconify(archive: object, slugs: dict[str, str]) -> dict[str, bytes]:
    """An iconify set: by its chars.json where that has entries, else by name through the slug table."""
    files = read_archive(archive, "", ".json")
    sheet = json.loads(files["icons.json"])
    names = json.loads(files.get("chars.json") or "{}")
    if not names:
        for name in [*sheet["icons"], *sheet.get("aliases", {})]:
            if name in slugs:
                names.setdefault(slugs[name], name)
    pictures = {}
    for hexcode, name in names.items():
        while name not in sheet["icons"] and name in sheet.get("aliases", {}):
            name = sheet["aliases"][name]["parent"]
        if name in sheet["icons"]:
            pictures[emoji_key(hexcode)] = icon_svg(sheet, sheet["icons"][name])
    return pictures


def slug_table(archives: dict[str, object]) -> dict[str, str]:
    """Slug -> key for the sets without a chars.json: another set's names and aliases, then the CLDR names.

    Args:
        archives: package name -> archive path; noto and unicode-emoji-json are read.
    """
    table: dict[str, str] = {}
    unicode_names = json.loads(read_archive(archives[UNICODE_EMOJI_JSON.name], "data-by-emoji")["data-by-emoji.json"])
    for emoji, entry in unicode_names.items():
        table.setdefault(slugify(entry["name"]), emoji_key("-".join(f"{ord(char):x}" for char in emoji)))
    noto = read_archive(archives[NOTO.name], "", ".json")
    by_name: dict[str, str] = {}
    for hexcode, name in json.loads(noto["chars.json"]).items():
        by_name.setdefault(name, emoji_key(hexcode))
    for alias, entry in json.loads(noto["icons.json"]).get("aliases", {}).items():
        if entry["parent"] in by_name:
            by_name.setdefault(alias, by_name[entry["parent"]])
    for name, key in by_name.items():
        table.setdefault(name, key)
    return table


STYLES = (
    Style("openmoji", OPENMOJI, "openmoji style", False, _by_file_name("color/svg/", ".svg")),
    Style("openmoji-black", OPENMOJI, "black line art", False, _by_file_name("black/svg/", ".svg")),
    Style("twemoji", PACKAGES["@discordapp/twemoji"], "twemoji style", False, _by_file_name("dist/svg/", ".svg")),
    Style("noto", NOTO, "noto style", False, _iconify),
    Style("noto-v1", PACKAGES["@iconify-json/noto-v1"], "old noto style", False, _iconify),
    Style("fluent-flat", PACKAGES["@iconify-json/fluent-emoji-flat"], "fluent flat style", False, _iconify),
    Style(
        "fluent-3d", PACKAGES["@lobehub/fluent-emoji-3d"], "fluent 3d style", False, _by_file_name("assets/", ".webp")
    ),
    Style("fluent-high-contrast", PACKAGES["@iconify-json/fluent-emoji-high-contrast"], "", True, _iconify),
    Style("emojione", PACKAGES["@iconify-json/emojione"], "", True, _iconify),
)
# Styles whose drawings share their layout: the other's drawing can be the query (editing, real sketches).
SAME_LAYOUT = {
    "openmoji": ("openmoji-black",),
    "openmoji-black": ("openmoji",),
    "fluent-flat": ("fluent-3d",),
    "fluent-3d": ("fluent-flat",),
}
