"""What an image is made from, as the command line says it."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import ContextDiffusionError


@dataclass
class Inputs:
    """What an image is made from: paths and words, from the command line or from a bundled example."""

    context: list[Path] = field(default_factory=list)
    queries: list[Path] = field(default_factory=list)
    map_name: str = "none"
    prompt: str | None = None


def collect_inputs(arguments: argparse.Namespace) -> Inputs:
    """The inputs of the command line; what it leaves out comes from --example where one is named.

    Raises:
        ContextDiffusionError: nothing to go by, an unknown example, or options that need others.
    """
    inputs = Inputs()
    if arguments.example is not None:
        from ..pretrained.examples import find_example

        example = find_example(arguments.example)
        queries = [] if example.query is None else [example.query]
        inputs = Inputs(list(example.context), queries, example.map, example.prompt)
    if arguments.context:
        inputs.context = arguments.context
    if arguments.query:
        inputs.queries, inputs.map_name = arguments.query, "none"
    if arguments.map is not None:
        inputs.map_name = arguments.map
    if arguments.prompt is not None:
        inputs.prompt = arguments.prompt
    if not inputs.context and not inputs.queries and not (inputs.prompt or "").strip():
        raise ContextDiffusionError("nothing to go by: give --context, --query, --prompt or --example")
    if arguments.map is not None and not inputs.queries:
        raise ContextDiffusionError("--map says what to take of the query, and there is none: give --query too")
    weights = arguments.context_weights
    if weights is not None and len(weights) != len(inputs.context):
        raise ContextDiffusionError(
            f"--context-weights has {len(weights)} numbers for {len(inputs.context)} context images: give one for each"
        )
    return inputs
