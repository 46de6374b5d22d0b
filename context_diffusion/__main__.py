"""`python -m context_diffusion` is `context-diffusion`."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
