"""How much our sampler adds to KSampler and to a bare loop over the same UNet, in a ComfyUI server.

    python benchmarks/sampler_overhead.py [--steps 20] [--rounds 7] [--size 128] [--comfyui PATH] [--python PATH]

The five runs take turns inside one node, so that a busy machine slows all of them; each ratio is of two runs of the
same round, given as the median with the smallest and the largest.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

RATIOS = [
    ("ours_two", "ksampler", "our sampler / KSampler, two branches"),
    ("ours_two", "bare_two", "our sampler / bare loop, two branches"),
    ("ksampler", "bare_two", "KSampler / bare loop, two branches"),
    ("ours_three", "bare_three", "our sampler / bare loop, three branches"),
    ("ours_three", "ours_two", "our sampler, three branches / two"),
]


def build_parser() -> argparse.ArgumentParser:
    """The options of the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--size", type=int, default=128, help="of the image, in pixels")
    parser.add_argument("--comfyui", help="a checkout; else COMFYUI_PATH or ~/comfy/ComfyUI")
    parser.add_argument("--python", help="its interpreter; else COMFYUI_PYTHON or the one in the checkout")
    return parser


def main() -> None:
    arguments = build_parser().parse_args()
    if arguments.comfyui:
        os.environ["COMFYUI_PATH"] = arguments.comfyui
    if arguments.python:
        os.environ["COMFYUI_PYTHON"] = arguments.python

    from tests.host.graph import SamplingGraph
    from tests.host.hosts import find_hosts
    from tests.host.server import Server

    hosts, missing = find_hosts()
    if not hosts:
        sys.exit("\n".join(missing))
    with tempfile.TemporaryDirectory() as folder:
        server = Server(hosts[0], Path(folder))
        try:
            graph = SamplingGraph(server)
            graph.context_conditionings(query=False)
            size = {"width": arguments.size, "height": arguments.size}
            probe = graph.add(
                "ProbeTimeSampling",
                model=graph.model,
                positive=graph.positive,
                negative=graph.negative,
                context_only=graph.context_only,
                latent=graph.add("EmptyLatentImage", **size, batch_size=1)[0],
                steps=arguments.steps,
                rounds=arguments.rounds,
            )
            seconds = server.run(graph, seconds=3600).outputs[probe.id]
        finally:
            server.stop()
    print(f"ComfyUI {hosts[0].version}, {arguments.size} px, {arguments.steps} steps, {arguments.rounds} rounds")
    for name, values in seconds.items():
        print(f"{name:>10} {statistics.median(values):7.3f} s ({min(values):.3f} to {max(values):.3f})")
    for over, under, words in RATIOS:
        ratios = [a / b for a, b in zip(seconds[over], seconds[under], strict=True)]
        print(f"{statistics.median(ratios):5.2f} ({min(ratios):.2f} to {max(ratios):.2f})  {words}")


if __name__ == "__main__":
    main()
