"""`context-diffusion info`: what a model is, and what came with the package."""

from __future__ import annotations

import argparse

from ..pretrained import DEFAULT_MODEL, bundled_model_path, bundled_models, find_model
from .parser import new_command


def add_command(commands: argparse._SubParsersAction) -> None:
    """Add `info`."""
    parser = new_command(
        commands,
        "info",
        run,
        help="describe a model; without one, list bundled models and examples",
        description="Describe a model. Without MODEL: the bundled models and example inputs.",
    )
    parser.add_argument("model", nargs="?", metavar="MODEL", help="a bundled name or a .safetensors file")


def run(arguments: argparse.Namespace) -> int:
    """Print to stdout."""
    if arguments.model is not None:
        print("\n".join(describe_model(arguments.model)))
        return 0
    from ..checkpoint.read import read_metadata
    from ..pretrained.examples import load_examples

    print("bundled models:")
    for name in bundled_models():
        metadata = read_metadata(bundled_model_path(name))
        title = metadata["info"].get("title", "")
        default = " (the default)" if name == DEFAULT_MODEL else ""
        print(f"  {name:<14} {title}, {metadata['parameters'] / 1e6:.1f} million parameters{default}")
    if not bundled_models():
        print("  none in this installation")
    print("\nexamples, for `context-diffusion generate --example NAME`:")
    for example in load_examples().values():
        print(f"  {example.name:<14} {example.title}")
    print("\n`context-diffusion info MODEL` describes one model.")
    return 0


def describe_model(name_or_file: str) -> list[str]:
    """The lines that `info MODEL` prints.

    Args:
        name_or_file: a bundled model's name or a path.

    Raises:
        ContextDiffusionError: no such model, or not a checkpoint.
    """
    from ..checkpoint.read import read_metadata

    path = find_model(name_or_file)
    metadata = read_metadata(path)
    info, schedule = metadata["info"], metadata["schedule"]
    encoder = metadata["config"].get("image_encoder")
    lines = [f"title        {info.get('title', 'none given')}"]
    if info.get("description"):
        lines.append(f"description  {info['description']}")
    resolution = info.get("resolution")
    lines += [
        f"licence      {info.get('license', 'none given')}",
        f"file         {path} ({metadata['size'] / 1e6:.1f} MB)",
        f"resolution   {f'{resolution} x {resolution} pixels' if resolution else 'none given'}",
        f"parts        {metadata['parameters']:,} parameters in all",
    ]
    for part, facts in metadata["parts"].items():
        lines.append(f"  {part:<16} {facts['parameters']:>12,}  {', '.join(facts['dtypes'])}")
    missing = [
        part for part in ("layout_encoder", "vae", "text_encoder", "image_encoder") if part not in metadata["parts"]
    ]
    if missing:
        lines.append(f"  not in the file: {', '.join(missing)}")
    tokens = metadata["tokens"]
    lines.append(f"vocabulary   {f'{tokens:,} tokens' if tokens else 'none in the file'}")
    if encoder:
        from ..model.visual_context import n_tokens

        side = encoder["image_size"]
        tokens = n_tokens(side, encoder["patch_size"])
        lines.append(f"context      {tokens} tokens, from images of {side} x {side} pixels")
    lines.append("schedule     " + ", ".join(f"{key} {value}" for key, value in schedule.items()))
    return lines
