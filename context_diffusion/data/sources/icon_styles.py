"""The icon sets: which package draws each, under which licence, and which of its variants are styles of their own."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from .packages import PACKAGES, Package


@dataclass(frozen=True)
class IconSet:
    """The icons of one package.

    Attributes:
        name: our name of the set; its styles begin with it.
        package: the package that carries it.
        words: how captions call every style of it.
        variants: the end of an icon's name -> what the style is called in captions; the end "" is that of the names
            with none of the others. Variants draw the same icons in the same layout.
        sizes: ends of names that are sizes of one drawing, the best first; empty where there are none.
        heldout: whether training never sees it. Such a set has no words.
    """

    name: str
    package: Package
    words: str
    variants: dict[str, str]
    sizes: tuple[str, ...] = ()
    heldout: bool = False


# In the order of `icon_sets.json`.
ICON_SETS = tuple(
    IconSet(
        name,
        PACKAGES[entry["package"]],
        entry.get("words", ""),
        entry.get("variants", {"": ""}),
        tuple(entry.get("sizes", ())),
        entry.get("heldout", False),
    )
    for name, entry in json.loads(Path(__file__).with_name("icon_sets.json").read_text(encoding="utf-8")).items()
)
