"""`context-diffusion train`: one stage of training in one or several processes."""

from __future__ import annotations

import argparse
import os
import sys
from importlib.util import find_spec
from pathlib import Path

from ..training.config import OPTIONS, add_options, load_config
from .parser import new_command

_EPILOG = """\
A run that was stopped, or killed, goes on from its last saved state when the same command is given again.
Watch it with `tensorboard --logdir OUT/logs`; grids of samples are in OUT/samples.
"""

# The module of one training process; research/ has its own.
PROCESS = "context_diffusion.training"


def add_command(commands: argparse._SubParsersAction) -> None:
    """Add `train`."""
    parser = new_command(
        commands,
        "train",
        run,
        help="train one stage of a model",
        description="Train one stage of a model as a TOML file says; options replace its values.",
        epilog=_EPILOG,
    )
    parser.add_argument("config", type=Path, metavar="CONFIG.toml", help="such as configs/emoji-128/1-vae.toml")
    add_options(parser)


def run(arguments: argparse.Namespace) -> int:
    """Check the config, then start the processes; the first bad exit code of theirs is ours."""
    for name in ("accelerate", "tensorboard"):
        if find_spec(name) is None:
            # Found out here, where it is one line, and not in every process.
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    from ..training.run.launch import launch
    from ..training.run.placement import started_processes
    from .outputs import check_writable

    overrides = {name: getattr(arguments, name) for name in OPTIONS}
    config = load_config(arguments.config, overrides)
    check_writable(Path(config.out) / "state.safetensors")
    command = [sys.executable, "-m", PROCESS, str(arguments.config)]
    for name in (*OPTIONS, "stop_after"):
        value = getattr(arguments, name)
        if value is not None:
            command += [f"--{name.replace('_', '-')}", str(value)]
    processes = started_processes(config.processes)
    return launch(command, processes, _environment(processes, config.threads))


def _environment(processes: int, threads: int) -> dict[str, str]:
    """Environment variables for the training processes, beside those that are set."""
    from ..training.run.placement import accelerator_count

    variables = {"OMP_NUM_THREADS": str(threads or max(1, (os.cpu_count() or 1) // processes))}
    if not accelerator_count():
        variables["ACCELERATE_USE_CPU"] = "true"
        if sys.platform == "linux":
            # Large temporary buffers would else go back to the system and be faulted in anew at each step.
            variables |= {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "100000000000"}
    # A value that the user has set counts.
    return {**variables, **os.environ}
