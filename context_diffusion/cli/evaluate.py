"""`context-diffusion evaluate`: figures of a model on data that training never saw."""

from __future__ import annotations

import argparse
import logging

from ..evaluation import heldout as heldout_command
from ..evaluation import table as table_command
from ..pretrained import find_model
from .outputs import check_writable
from .parser import new_command

_EPILOG = """\
A run that was stopped goes on where it was. Two processes share the work when one gets --shard 0/2 and
the other --shard 1/2; the figures are written to OUT by the one that finds every image there.
"""
_TABLE_EPILOG = """\
examples:
  context-diffusion evaluate table --model emoji-128 --data data/emoji --squeezenet squeezenet.safetensors \\
      --out out --quick
      a small table in minutes
  context-diffusion evaluate table --model emoji-128 --data data/emoji --squeezenet squeezenet.safetensors \\
      --out out --plan
      how many images the whole table takes, and how long

docs/evaluation.md defines every figure. A run that was stopped goes on where it was. Two processes share the
work when one gets --shard 0/2 and the other --shard 1/2; the one that finds every image there writes the tables.
"""


def add_command(commands: argparse._SubParsersAction) -> None:
    """Add `evaluate heldout` and `evaluate table`."""
    parser = commands.add_parser("evaluate", help="measure a model", description="Measure a model.")
    protocols = parser.add_subparsers(title="protocols", metavar="NAME", required=True)
    heldout = new_command(
        protocols,
        "heldout",
        run_heldout,
        help="held-out emoji and styles, with bootstrap intervals",
        description="Make images of held-out emoji in every setting and measure them.",
        epilog=_EPILOG,
    )
    heldout_command.add_arguments(heldout)
    table = new_command(
        protocols,
        "table",
        run_table,
        help="the paper's table: tasks, settings, numbers of context images, controls, other models",
        description="Make images of held-out emoji for every task in every setting and measure them.",
        epilog=_TABLE_EPILOG,
    )
    table_command.add_arguments(table)


def run_heldout(arguments: argparse.Namespace) -> int:
    """Run the protocol, or this shard of it."""
    arguments.model = find_model(arguments.model)
    check_writable(arguments.out / "heldout.md")
    logging.getLogger("context_diffusion").setLevel(logging.INFO)
    heldout_command.run(arguments)
    return 0


def run_table(arguments: argparse.Namespace) -> int:
    """Make the table, or this shard of it."""
    arguments.model = find_model(arguments.model)
    arguments.against = [find_model(model) for model in arguments.against]
    check_writable(arguments.out / "table.md")
    logging.getLogger("context_diffusion").setLevel(logging.INFO)
    table_command.run(arguments)
    return 0
