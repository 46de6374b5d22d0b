"""What every command's parser is made with."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that keeps the layout of its epilog and reports a mistake in one line."""

    def __init__(self, **settings: object) -> None:
        settings.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(**settings)

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None) -> tuple:
        self._words = sys.argv[1:] if args is None else list(args)
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        option = re.match(r"argument (?:-\w/)?(--[\w-]+): expected (?:at least )?one argument", message)
        if option and option[1] in self._words[:-1]:
            word = self._words[self._words.index(option[1]) + 1]
            if word not in self._option_string_actions:
                message += f"; what begins with a dash is given as {option[1]}={word}"
        print(f"error: {message} (see `{self.prog} --help`)", file=sys.stderr)
        raise SystemExit(2)


def new_command(commands: argparse._SubParsersAction, name: str, run: Callable, **settings: object) -> Parser:
    """A subcommand that calls run(arguments) -> exit code or None."""
    parser = commands.add_parser(name, **settings)
    parser.set_defaults(run=run)
    parser.add_argument("-v", "--verbose", action="store_true", help="say more on stderr")
    return parser
