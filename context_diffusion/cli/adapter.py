"""`context-diffusion adapter`: what an IP-Adapter file is, and a pickled one as a file without code."""

from __future__ import annotations

import argparse
from pathlib import Path

from .parser import new_command


def add_command(commands: argparse._SubParsersAction) -> None:
    """Add `adapter info` and `adapter convert`."""
    parser = commands.add_parser("adapter", help="describe or convert an IP-Adapter file")
    kinds = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    info = new_command(kinds, "info", run_info, help="what a file is, by its tensors")
    info.add_argument("file", type=Path, metavar="FILE", help="a .safetensors file")
    convert = new_command(kinds, "convert", run_convert, help="a pickle (.bin) as .safetensors; its code is not run")
    convert.add_argument("file", type=Path, metavar="FILE", help="a .bin file")
    convert.add_argument("--out", type=Path, required=True, metavar="FILE", help="the .safetensors file to write")


def run_info(arguments: argparse.Namespace) -> None:
    """Print what a file is."""
    from ..adapters.file import read_kind

    kind = read_kind(arguments.file)
    tokens = kind.tokens or "one a hidden state"
    print(f"{arguments.file}: an image adapter for {kind.family}")
    print(f"  projection      {kind.projection}, tokens of an image: {tokens}")
    print(f"  image encoder   {kind.feature}, {kind.encoder_width} wide")
    print(f"  text width      {kind.text_width}")
    print(f"  attentions      {len(kind.inner_widths)}")


def run_convert(arguments: argparse.Namespace) -> None:
    """Convert a pickle."""
    from ..adapters.file import convert_pickle

    kind = convert_pickle(arguments.file, arguments.out)
    print(f"{arguments.out}: a {kind.projection} adapter for {kind.family}")
