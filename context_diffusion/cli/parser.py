"""What every command's parser is made with."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import NoReturn


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that keeps the layout of its epilog and reports a mistake in one line."""

    def __init__(self, **settings: object) -> None:
        settings.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(**settings)

    def error(self, message: str) -> NoReturn:
        print(f"error: {message} (see `{self.prog} --help`)", file=sys.stderr)
        raise SystemExit(2)


def new_command(commands: argparse._SubParsersAction, name: str, run: Callable, **settings: object) -> Parser:
    """A subcommand that calls run(arguments) -> exit code or None."""
    parser = commands.add_parser(name, **settings)
    parser.set_defaults(run=run)
    parser.add_argument("-v", "--verbose", action="store_true", help="say more on stderr")
    return parser
