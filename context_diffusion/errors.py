"""The one error type that means: the input is wrong and the message says how to mend it."""

from __future__ import annotations

import reprlib

# Characters of a message: names and values that a file brings may be of any length.
_LONGEST = 1000


class ContextDiffusionError(ValueError):
    """A mistake in what was given: a file, a tensor, a checkpoint, a setting.

    The message is one line that names what was got, what was expected and what to change. The command line
    prints it without a traceback and leaves with exit code 2; the nodes show it at the node.

    Args:
        message: what no terminal and no interface can show in it is escaped, and its middle is left out where it
            is longer than `_LONGEST`: it may quote names that strangers chose.
    """

    def __init__(self, message: object) -> None:
        text = str(message)
        if len(text) > _LONGEST:
            text = f"{text[: 2 * _LONGEST // 3]} ... {text[-_LONGEST // 3 :]}"
        super().__init__("".join(each if each.isprintable() else ascii(each)[1:-1] for each in text))


def brief(value: object) -> str:
    """`repr` of a value that a file brings, of a few hundred characters at most however large or nested it is."""
    return _short.repr(value)


_short = reprlib.Repr()
_short.maxstring = _short.maxother = 80
