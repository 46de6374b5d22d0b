"""What `--help` shows."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import NoReturn

from .. import __version__

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


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that keeps the layout of its epilog and reports a mistake in one line."""

    def __init__(self, **settings: object) -> None:
        settings.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(**settings)

    def error(self, message: str) -> NoReturn:
        print(f"error: {message} (see `{self.prog} --help`)", file=sys.stderr)
        raise SystemExit(2)


def build_parser() -> Parser:
    """The parser of every subcommand. Nothing heavy is imported."""
    from . import average, data, evaluate, generate, info, train

    parser = Parser(
        prog="context-diffusion",
        description="Make images from context images (the style), a query image (the layout) and a prompt.",
        epilog=_EPILOG,
    )
    parser.add_argument("--version", action="version", version=f"context-diffusion {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for module in (generate, info, train, average, data, evaluate):
        module.add_command(commands)
    return parser


def new_command(commands: argparse._SubParsersAction, name: str, run: Callable, **settings: object) -> Parser:
    """A subcommand that calls run(arguments) -> exit code or None."""
    parser = commands.add_parser(name, **settings)
    parser.set_defaults(run=run)
    parser.add_argument("-v", "--verbose", action="store_true", help="say more on stderr")
    return parser
