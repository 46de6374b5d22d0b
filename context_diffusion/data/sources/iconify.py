"""Icon sets as the @iconify-json packages hold them: one sheet of SVG bodies, with names and categories."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from .packages import read_archive


@dataclass(frozen=True)
class IconSheet:
    """One package's icons.

    Attributes:
        pictures: name -> SVG; icons that the set has hidden (renamed or withdrawn ones) are left out.
        categories: name -> the set's own category in lower-case words; without those it has none for.
    """

    pictures: dict[str, bytes]
    categories: dict[str, str]


def read_sheet(archive: Path) -> IconSheet:
    """The icons of an @iconify-json archive."""
    files = read_archive(archive, "", ".json")
    sheet = json.loads(files["icons.json"])
    groups = json.loads(files.get("metadata.json", b"{}")).get("categories", {})
    shown = {name: icon for name, icon in sheet["icons"].items() if not icon.get("hidden")}
    return IconSheet(
        {name: icon_svg(sheet, icon) for name, icon in shown.items()},
        {name: _words(group) for group, names in groups.items() for name in names},
    )


def icon_svg(sheet: Mapping, icon: Mapping) -> bytes:
    """One icon as a whole SVG file; sides that it does not give are the sheet's.

    Args:
        sheet: the package's icons.json.
        icon: an entry of its `icons`.
    """
    left, top, width, height = (
        icon.get(side, sheet.get(side, default))
        for side, default in (("left", 0), ("top", 0), ("width", 16), ("height", 16))
    )
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{left} {top} {width} {height}">{icon["body"]}</svg>'
    ).encode()


def _words(category: str) -> str:
    """`FoodDrink` -> `food drink`."""
    spaced = "".join(f" {char}" if char.isupper() else char for char in category)
    return " ".join(spaced.replace("&", " ").replace("-", " ").lower().split())
