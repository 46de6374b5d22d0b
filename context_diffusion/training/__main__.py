"""One training process: `python -m context_diffusion.training CONFIG.toml`, started by `context-diffusion train`."""

from __future__ import annotations

import argparse
import importlib
import logging
import sys

from ..failures import report
from .config import RunConfig, add_options, load_config
from .run.launch import end_with_launcher
from .run.loop import train

STAGE_CLASSES = {
    "vae": (".stages.vae", "VAEStage"),
    "clip": (".stages.clip", "CLIPStage"),
    "diffusion": (".stages.diffusion", "DiffusionStage"),
}


def make_stage(config: RunConfig) -> object:
    """The stage that the config names."""
    module, name = STAGE_CLASSES[config.stage]
    return getattr(importlib.import_module(module, __package__), name)(config)


def main(argv: list[str] | None = None) -> int:
    """Run one stage, or this process's share of it.

    Returns:
        The exit code, see `failures.report`; what went wrong is one line on stderr.
    """
    parser = argparse.ArgumentParser(prog="python -m context_diffusion.training", description=__doc__)
    parser.add_argument("config")
    add_options(parser)
    arguments = vars(parser.parse_args(argv))
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    end_with_launcher()
    path, stop_after = arguments.pop("config"), arguments.pop("stop_after")
    try:
        config = load_config(path, arguments)
        train(config, make_stage(config), stop_after)
    except (Exception, KeyboardInterrupt) as error:
        code = report(error)
        if code is None:
            raise
        return code
    return 0


if __name__ == "__main__":
    sys.exit(main())
