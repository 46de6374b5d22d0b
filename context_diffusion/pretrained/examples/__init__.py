"""Example inputs that come with the package: small images, described in examples.json.

`examples.json` says of each example what it consists of, and of each file where it comes from, who made it,
under which licence, and how it was changed.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ...errors import ContextDiffusionError

_FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Example:
    """Inputs for one image.

    Attributes:
        name: what `--example` takes.
        title: what it shows, in a line.
        context: context images, possibly none.
        query: the query image, or None.
        map: a key of `maps.MAPS`: what is taken of the query.
        prompt: the text, or None.
    """

    name: str
    title: str
    context: tuple[Path, ...]
    query: Path | None
    map: str
    prompt: str | None


@cache
def load_examples() -> dict[str, Example]:
    """Name -> example, in the order in which they are listed."""
    sheet = json.loads((_FOLDER / "examples.json").read_text(encoding="utf-8"))
    images = _FOLDER / "images"
    examples = (
        Example(
            entry["name"],
            entry["title"],
            tuple(images / name for name in entry["context"]),
            images / entry["query"] if entry["query"] else None,
            entry["map"],
            entry["prompt"],
        )
        for entry in sheet["examples"]
    )
    return {example.name: example for example in examples}


def find_example(name: str) -> Example:
    """One example by name.

    Raises:
        ContextDiffusionError: there is none of that name.
    """
    examples = load_examples()
    if name not in examples:
        raise ContextDiffusionError(f"there is no example {name!r}; choose one of {', '.join(examples)}")
    return examples[name]
