"""The command line `context-diffusion`: one subcommand a file, each imported for its arguments alone.

Exit codes: 0 done; 1 the machine failed (no memory, a broken disk); 2 the input was wrong; 130 Ctrl-C.
Whatever goes wrong is one line on stderr that starts with `error:`.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence

from ..failures import FAILED, report
from .parser import build_parser

__all__ = ["build_parser", "main"]


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
    except BrokenPipeError:
        # The reader of our output went away (`... | head`): nothing to report, and nobody to report it to.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except (Exception, KeyboardInterrupt) as error:
        code = report(error)
        if code is None:
            raise
        return code
