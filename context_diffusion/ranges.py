"""A number in a range, said and checked in one way on the command line, in configs and in the pipeline."""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass

from .errors import ContextDiffusionError


@dataclass(frozen=True)
class Range:
    """Finite numbers from `low` to `high`, both ends included.

    As argparse's `type=` it reads an option's text.

    Attributes:
        low: None for no lower end.
        high: None for no upper end; not without `low`.
        whole: whole numbers alone.
    """

    low: float | None = None
    high: float | None = None
    whole: bool = False

    def __str__(self) -> str:
        """Behind "expected": "a whole number from 1 up", "a number from 0 to 1"."""
        if self.low is None:
            return f"a {'whole' if self.whole else 'finite'} number"
        return f"{self._kind} from {self.low} " + ("up" if self.high is None else f"to {self.high}")

    def __contains__(self, value: object) -> bool:
        return self.read(value) is not None

    def read(self, value: object) -> int | float | None:
        """A number of numpy's or a tensor of no dimensions as Python's; None for what is no number of the range."""
        if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
            value = value.item()
        if isinstance(value, bool) or not isinstance(value, int if self.whole else (int, float)):
            return None
        largest = sys.float_info.max
        low, high = -largest if self.low is None else self.low, largest if self.high is None else self.high
        return value if low <= value <= high else None

    def check(self, **values: object) -> list[int | float]:
        """Numbers of the range, each under its name, as Python's own.

        Raises:
            ContextDiffusionError: anything else.
        """
        numbers = []
        for name, value in values.items():
            read = self.read(value)
            if read is None:
                is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
                got = f"{name} is {value}" if is_number else f"{name}: got {type(value).__name__}"
                raise ContextDiffusionError(f"{got}, expected {self}")
            numbers.append(read)
        return numbers

    def __call__(self, text: str) -> int | float:
        """An option's text as a number.

        Raises:
            argparse.ArgumentTypeError: anything else.
        """
        try:
            value = self.read(int(text) if self.whole else float(text))
        except ValueError:
            value = None
        if value is None:
            ends = f", {self.low} or more" if self.high is None else f" in [{self.low}, {self.high}]"
            raise argparse.ArgumentTypeError(
                f"got {text!r}, expected {self if self.low is None else self._kind + ends}"
            )
        return value

    @property
    def _kind(self) -> str:
        return "a whole number" if self.whole else "a number"


def whole_number(low: int, high: int | None = None) -> Range:
    """Whole numbers from `low` to `high`."""
    return Range(low, high, whole=True)


def number(low: float | None = None, high: float | None = None) -> Range:
    """Finite numbers from `low` to `high`."""
    return Range(low, high)


# What sampling takes, for the pipeline and the command line alike. The ends leave room for any use; far beyond them
# sums overflow and the image is NaN.
STEPS = whole_number(1, 10_000)
PIXELS = whole_number(1, 16_384)
GUIDANCE = number(-100, 100)
LORA_STRENGTH = number(-100, 100)
LAYOUT_STRENGTH = number(0, 10)
CONTEXT_WEIGHT = number(0, 1000)
SHARE = number(0, 1)
