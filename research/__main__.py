"""`python -m research COMMAND`: `context-diffusion COMMAND` for the models of this folder too, from the repository.

A file that is not where an argument says, but is so below research/, is meant there: `configs/ablations/sum.toml`.
"""

import sys
from pathlib import Path

from context_diffusion.cli import main

from . import register

ROOT = Path(__file__).parent


def below_research(argument: str) -> str:
    """The argument, or the file below research/ that it names."""
    there = ROOT / argument
    return str(there) if not Path(argument).exists() and there.is_file() else argument


if __name__ == "__main__":
    register()
    sys.exit(main([below_research(argument) for argument in sys.argv[1:]]))
