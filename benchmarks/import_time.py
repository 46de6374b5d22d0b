"""How long ComfyUI says that loading the pack took, over several starts of a server.

    python -m benchmarks.import_time [STARTS]

A time says something on a quiet machine only, so no test asserts it; what a test asserts is that loading brings in
nothing but the standard library and what the host has loaded already (`tests/host/test_registration.py`).
"""

from __future__ import annotations

import argparse
import re
import statistics
import sys
import tempfile
from pathlib import Path

from tests.host.hosts import find_hosts
from tests.host.server import PACK_NAME, Server


def build_parser() -> argparse.ArgumentParser:
    """The options of the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("starts", nargs="?", type=int, default=5, metavar="STARTS", help="of each server (default 5)")
    return parser


def main() -> int:
    starts = build_parser().parse_args().starts
    hosts, missing = find_hosts()
    for reason in missing:
        print(reason, file=sys.stderr)
    for host in hosts:
        seconds = []
        for _ in range(starts):
            with tempfile.TemporaryDirectory() as folder:
                server = Server(host, Path(folder))
                server.stop()
                seconds.append(float(re.search(rf"([\d.]+) seconds(?: \(.*\))?: .*/{PACK_NAME}$", server.log, re.M)[1]))
        low, middle, high = min(seconds), statistics.median(seconds), max(seconds)
        print(f"ComfyUI {host.version}: {low:.1f} s, {middle:.1f} s, {high:.1f} s (least, median, most of {starts})")
    return 0 if hosts else 1


if __name__ == "__main__":
    sys.exit(main())
