"""The nine emoji styles: which package draws each, under which licence, and how its files are named."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass

from .iconify import icon_svg
from .packages import Package, read_archive

OPENMOJI = Package(
    "openmoji",
    "17.0.0",
    "EBnYrNGdcdw+OSXmENeNE1yBNRu6tOraTmoOyUbJkTmvT/+XETp8RZLSJFzD3lrPc5N9CzsyPnRTk0Vp4UaI9w==",
    "CC-BY-SA-4.0",
    "OpenMoji, the open-source emoji and icon project, openmoji.org",
)
TWEMOJI = Package(
    "@discordapp/twemoji",
    "16.0.1",
    "figLiBWzjS5cyrAjLaGjM8AAaowO3qvK8rg5bA2dElB4qsaPMvBVlFDMO2d3x+nC1igt7kgWH4dvNmvvUHUF8w==",
    "CC-BY-4.0",
    "Twemoji, Twitter, Inc and other contributors",
)
NOTO = Package(
    "@iconify-json/noto",
    "1.2.9",
    "DQiuXENbun41ch+XPSV55H9FaWKpHTyz46YIKtSaKYD4fIDDzL1tR6H4np/T38jfrTAeI3rcKF0mqHYeZVAuaw==",
    "Apache-2.0",
    "Noto Emoji, Google Inc",
)
NOTO_V1 = Package(
    "@iconify-json/noto-v1",
    "1.2.5",
    "/DsVMius69Q0fRS53z7QK1TROSuar606jiIx+laXtdsYGMXpf6LtHBx6CGfoo3UHHb/XpBsw+1L1x3eyPqMuVA==",
    "Apache-2.0",
    "Noto Emoji (v1), Google Inc",
)
FLUENT_FLAT = Package(
    "@iconify-json/fluent-emoji-flat",
    "1.2.6",
    "RY47RgPb47fYUiyrA64sIOL0+UU02s29sXpNBbIQRBUlPlfNFTKUmZDERGuxDs/7yNGWqQYvuaSYM1M4fRXlUw==",
    "MIT",
    "Fluent Emoji (flat), Microsoft Corporation",
)
FLUENT_3D = Package(
    "@lobehub/fluent-emoji-3d",
    "1.1.0",
    "Wlq2lVStTnr8BDpIJ0pEnTKO4LuDxxqTEhTvRtD1DLRF0me7ogeRQjKoehDHXuVJ2Qaecgl5wRBv60lUAG3h7g==",
    "MIT",
    "Fluent Emoji (3D), Microsoft Corporation",
)
FLUENT_HIGH_CONTRAST = Package(
    "@iconify-json/fluent-emoji-high-contrast",
    "1.2.6",
    "esqhZPpkrF7sNX3NsLoh8KW64okEr/bzko7WNnFP+qTJGAqDPDYjp0925yxuivXy3HtVQB8xhIKu3+Nq1byX5w==",
    "MIT",
    "Fluent Emoji (high contrast), Microsoft Corporation",
)
EMOJIONE = Package(
    "@iconify-json/emojione",
    "1.2.3",
    "T9+T3HIbJNLKKsmxYKlaYhvnHYkz/HNYTV7SHCXVZPfeUi4FqskY70YeN8yYAZT8cCv7w5vJxS4Q1m8zb9CMMg==",
    "CC-BY-4.0",
    "EmojiOne 2, Ranks.com Inc, kept by EmojiTwo",
)
UNICODE_EMOJI_JSON = Package(
    "unicode-emoji-json",
    "0.9.0",
    "HdrQW/7SdbXUsTd8uTATv7LvQJkCSgbAgRCDCtOhQ6xn3EAx+xZHQtRniOXWJK3ywIqPegkNhP4U4EbuFsiQng==",
    "MIT",
    "unicode-emoji-json, Mu-An Chiou",
)
EMOJILIB = Package(
    "emojilib",
    "4.0.3",
    "KbWiYre9aRSaPbHrHZIz9zmoM+21LAsK1VFJtnTh1VCtWE/rNMDviGhQTmselFl95dhqtGlY22iH0leG5BuW0g==",
    "MIT",
    "emojilib, Mu-An Chiou",
)
EMOJIBASE = Package(
    "emojibase-data",
    "17.0.0",
    "Yvgb5AWoHViHV/gq1qr5ZAarcBip+B27/ZLRsUJkbgAEaLlZ/fof9g882LTpmEpyhBNEC0m2SEmItljHsTygjA==",
    "MIT",
    "emojibase, Miles Johnson",
)
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
    Style("twemoji", TWEMOJI, "twemoji style", False, _by_file_name("dist/svg/", ".svg")),
    Style("noto", NOTO, "noto style", False, _iconify),
    Style("noto-v1", NOTO_V1, "old noto style", False, _iconify),
    Style("fluent-flat", FLUENT_FLAT, "fluent flat style", False, _iconify),
    Style("fluent-3d", FLUENT_3D, "fluent 3d style", False, _by_file_name("assets/", ".webp")),
    Style("fluent-high-contrast", FLUENT_HIGH_CONTRAST, "", True, _iconify),
    Style("emojione", EMOJIONE, "", True, _iconify),
)
# Styles whose drawings share their layout: the other's drawing can be the query (editing, real sketches).
SAME_LAYOUT = {
    "openmoji": ("openmoji-black",),
    "openmoji-black": ("openmoji",),
    "fluent-flat": ("fluent-3d",),
    "fluent-3d": ("fluent-flat",),
}
