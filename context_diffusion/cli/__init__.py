"""The command line `context-diffusion`: one subcommand a file, each imported for its arguments alone.

Exit codes: 0 done; 1 the machine failed (no memory, a broken disk); 2 the input was wrong; 130 Ctrl-C.
Whatever goes wrong is one line on stderr that starts with `error:`.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence

from .. import __version__
from ..failures import FAILED, report
from . import adapter, average, data, evaluate, generate, info, train
from .parser import Parser

__all__ = ["build_parser", "main"]

_EPILOG = """\
examples:
  context-diffusion info
      which models and example inputs came with the package
  context-diffusion generate --example moon-camp --grid --out moon.png
      a first picture, from inputs that came with the package
  context-diffusion generate --context a.png b.png --query sketch.png --map softedge --out new.png
      draw the sketch in the style of a.png and b.png
  context-diffusion generate --context a.png b.png --prompt "a red fox" --num-images 4 --out fox.png
      four foxes in that style: fox-1.png to fox-4.png

`context-diffusion COMMAND --help` explains one command.
exit codes: 0 done, 1 the machine failed, 2 the input was wrong, 130 stopped with Ctrl-C
"""


def build_parser() -> Parser:
    """The parser of every subcommand. Nothing heavy is imported."""
    parser = Parser(
        prog="context-diffusion",
        description="Make images from context images (the style), a query image (the layout) and a prompt.",
        epilog=_EPILOG,
    )
    parser.add_argument("--version", action="version", version=f"context-diffusion {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for module in (generate, info, train, average, data, evaluate, adapter):
        module.add_command(commands)
    return parser


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
    if hasattr(sys.stdout, "reconfigure"):  # names of files need not be text
        sys.stdout.reconfigure(errors="backslashreplace")
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
