"""`context-diffusion average`: one model of several that were trained on from one checkpoint."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..ranges import number
from .parser import new_command


def add_command(commands: argparse._SubParsersAction) -> None:
    """Add `average`."""
    parser = new_command(
        commands,
        "average",
        run,
        help="average the weights of several models",
        description="Average the weights of models that were trained on from one checkpoint. Title, license and "
        "autoencoder are the first model's.",
    )
    parser.add_argument("models", nargs="+", metavar="MODEL", help="bundled names or .safetensors files, two or more")
    parser.add_argument(
        "--weights", nargs="+", type=number(0), metavar="W", help="how much each model counts (default: all the same)"
    )
    parser.add_argument(
        "--vae", metavar="RUN", help="folder of a run of the vae stage that trained the models' decoder on; it goes in"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="where the .safetensors file goes")


def run(arguments: argparse.Namespace) -> int:
    """Load, average, save."""
    from ..checkpoint.read import load_checkpoint
    from ..checkpoint.write import save_checkpoint
    from ..pretrained import find_model
    from ..training.begin.average import average_models, replace_vae
    from ..training.begin.vae import load_vae
    from .outputs import check_keeps, check_writable

    models = [find_model(name) for name in arguments.models]
    check_keeps(models, [arguments.out])
    check_writable(arguments.out)
    vae = None if arguments.vae is None else load_vae(arguments.vae)
    model = average_models([load_checkpoint(model) for model in models], arguments.weights)
    if vae is not None:
        replace_vae(model, vae)
    save_checkpoint(model, arguments.out)
    return 0
