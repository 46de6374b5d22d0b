"""Where in a UNet an adapter acts: everywhere, in the blocks of style or of layout, or as a list says.

Cross-attentions are numbered from 0 in the files' order: the way down, the way up, the middle.
"""

from __future__ import annotations

from ..errors import ContextDiffusionError

# What a user picks.
BLOCKS = ("all", "style", "layout", "style and layout")

# Of the public UNets, known by how many cross-attentions they have: SDXL's were found by InstantStyle (arXiv
# 2404.02733), which names one block of Stable Diffusion 1.5 as an experiment and none for layout.
_STYLE = {70: range(34, 44), 16: range(6, 9)}
_LAYOUT = {70: range(14, 24)}


def layer_strengths(blocks: str, layers: int, listed: str = "") -> list[float]:
    """How strongly an adapter acts in each cross-attention.

    Args:
        blocks: one of `BLOCKS`.
        layers: how many cross-attentions the UNet has.
        listed: in place of `blocks`: numbers or spans with a strength each, "0-3: 0.5, 14: 1"; the others get 0. Empty:
            `blocks` holds.

    Raises:
        ContextDiffusionError: no such blocks in a UNet of so many cross-attentions, or a list that cannot be read.
    """
    if listed.strip():
        return _read(listed, layers)
    if blocks == "all":
        return [1.0] * layers
    chosen: set[int] = set()
    for word, known in (("style", _STYLE), ("layout", _LAYOUT)):
        if word not in blocks.split(" and "):
            continue
        if layers not in known:
            raise ContextDiffusionError(
                f"blocks is {blocks!r} and for a UNet with {layers} cross-attentions no blocks of {word} are known: "
                f"choose all, or list blocks by number (0 to {layers - 1})"
            )
        chosen.update(known[layers])
    if not chosen:
        raise ContextDiffusionError(f"blocks is {blocks!r}; choose one of {', '.join(BLOCKS)}")
    return [float(layer in chosen) for layer in range(layers)]


def _read(listed: str, layers: int) -> list[float]:
    strengths = [0.0] * layers
    for entry in filter(None, (each.strip() for each in listed.replace("\n", ",").split(","))):
        span, _, value = entry.partition(":")
        first, _, last = span.partition("-")
        try:
            start, end, strength = int(first), int(last or first), float(value or 1)
        except ValueError as error:
            raise ContextDiffusionError(
                f'the list of blocks has {entry!r}, expected numbers with a strength, such as "0-3: 0.5, 14: 1"'
            ) from error
        if not 0 <= start <= end < layers or not abs(strength) < float("inf"):
            raise ContextDiffusionError(
                f"the list of blocks has {entry!r}, expected numbers from 0 to {layers - 1} and a finite strength"
            )
        strengths[start : end + 1] = [strength] * (end + 1 - start)
    return strengths
