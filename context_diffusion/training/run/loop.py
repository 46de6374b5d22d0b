"""The training loop of every stage: accelerate, EMA, clipping, resume, logs, sample grids, throughput and ETA."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ...precision import multiply_in_bf16
from ..config import RunConfig
from .lock import only_run
from .optimizer import MuonAdamW
from .placement import accelerator_count, to_device
from .state import identity, load_state, save_state

if TYPE_CHECKING:
    from accelerate import Accelerator

logger = logging.getLogger(__name__)


class Stage(Protocol):
    """What a stage brings to the loop.

    Attributes:
        module: everything that is trained as one module; its forward takes a batch from `batch` and returns
            (loss, numbers to log).
    """

    module: nn.Module

    def batch(self, step: int, rank: int, world: int) -> dict:
        """One of the `world` batches of a step: a function of its arguments alone, so that a resumed run repeats it."""

    def sample(self) -> Tensor | None:
        """A grid of the present weights' results, (3, H, W) in [0, 1]."""

    def finish(self, out: Path) -> None:
        """Write the stage's result from the present (averaged) weights."""

    # A stage may also have `prepare(rank, world)`: work to share out among the processes before the first step;
    # `frozen`: modules beside `module` that it computes with, for the loop to move; and `identity`: what else than
    # its settings makes it another run, name -> value.


def batch_seed(seed: int, step: int, rank: int, stream: int = 0) -> int:
    """One seed for a step, process and use: the same in a resumed run."""
    return ((seed * 1_000_003 + step) * 64 + rank) * 8 + stream


def learning_rate(config: RunConfig, step: int) -> float:
    """Linear warm-up, then a cosine from the peak to `final_learning_rate` of it."""
    warm = min(1.0, (step + 1) / max(1, config.warmup_steps))
    progress = min(1.0, step / config.steps)
    cosine = config.final_learning_rate + (1 - config.final_learning_rate) * (1 + math.cos(math.pi * progress)) / 2
    return config.learning_rate * warm * cosine


def train(config: RunConfig, stage: Stage, stop_after: int | None = None) -> Path:
    """Run a stage to its last step, from its last saved state if there is one.

    Args:
        config: the run's settings.
        stage: what is trained.
        stop_after: leave after this step with the state saved, as a kill would; for tests and time limits.

    Returns:
        The run's folder.

    Raises:
        ContextDiffusionError: another run is at work in the folder, or its saved state is damaged or was made with
            other settings.
    """
    from accelerate import Accelerator
    from accelerate.utils import DistributedDataParallelKwargs

    if config.threads:
        torch.set_num_threads(config.threads)
    # Gradients as views into the buckets that are averaged: one copy less a step.
    ddp = DistributedDataParallelKwargs(gradient_as_bucket_view=True)
    precision = "bf16" if config.precision == "bf16" else "no"
    # Left to itself accelerate takes the processes of a machine without an accelerator for runs of one process each.
    accelerator = Accelerator(cpu=accelerator_count() == 0, mixed_precision=precision, kwargs_handlers=[ddp])
    out = Path(config.out)
    with only_run(out) if accelerator.is_main_process else nullcontext():
        _run(config, stage, accelerator, out, min(config.steps, stop_after or config.steps))
        accelerator.wait_for_everyone()
    accelerator.end_training()
    return out


def _run(config: RunConfig, stage: Stage, accelerator: Accelerator, out: Path, last: int) -> None:
    """Train up to the step `last`, in one of the run's processes."""
    rank, world, device = accelerator.process_index, accelerator.num_processes, accelerator.device
    # A process that stands for several has their batches one after another.
    batches = max(config.processes, world)
    own = range(rank, batches, world)
    _pin(rank, world, config.threads)
    for frozen in getattr(stage, "frozen", ()):
        frozen.to(device)
    if hasattr(stage, "prepare"):
        stage.prepare(rank, world)
        accelerator.wait_for_everyone()
    module = stage.module.to(device)
    multiply = torch.float32
    if config.precision == "bf16_matmul":
        multiply = torch.bfloat16
        multiply_in_bf16(module)
    trained = {name: value for name, value in module.named_parameters() if value.requires_grad}
    ema = {name: value.detach().clone() for name, value in trained.items()}
    optimizer = MuonAdamW(trained.items(), lr=config.learning_rate, weight_decay=config.weight_decay, dtype=multiply)
    state_file = out / "state.safetensors"
    made_with = identity(config, getattr(stage, "identity", {}))
    first = 0
    if state_file.exists():
        first = load_state(state_file, module, ema, optimizer, made_with)
        logger.info("goes on after step %d" if first < last else "step %d is already done", first)
    wrapped = accelerator.prepare(module) if world > 1 else module
    writer = _writer(out) if accelerator.is_main_process else None
    bar = tqdm(
        initial=first, total=config.steps, desc=config.stage, unit="step", smoothing=0.05,
        disable=None if accelerator.is_main_process else True,
    )  # fmt: skip
    started, seen = time.monotonic(), 0
    for step in range(first, last):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config, step)
        for number in own:
            with accelerator.autocast():
                loss, numbers = wrapped(to_device(stage.batch(step, number, batches), device))
            accelerator.backward(loss / len(own))
        norm = torch.nn.utils.clip_grad_norm_(trained.values(), config.grad_clip)
        if torch.isfinite(norm):
            optimizer.step()
        else:
            # One bad batch must not poison the moments; all processes see the same averaged gradients.
            logger.warning("step %d: the gradient is not finite; the step is left out", step)
        optimizer.zero_grad(set_to_none=True)
        # A young average follows the weights closely, an old one moves slowly.
        decay = min(config.ema_decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(ema.values()), [value.detach() for value in trained.values()], 1 - decay)
        bar.update()
        seen += config.batch_size * batches
        done = step + 1
        if writer and config.log_every and done % config.log_every == 0:
            rate = seen / (time.monotonic() - started)
            figures = {name: float(value) for name, value in numbers.items()}
            bar.set_postfix({**{name: f"{value:.4f}" for name, value in figures.items()}, "images/s": f"{rate:.0f}"})
            for name, value in {**figures, "gradient_norm": float(norm), "images_per_second": rate}.items():
                writer.add_scalar(name, value, done)
            rounded = {name: round(value, 4) for name, value in figures.items()}
            logger.info("step %d %s images/s %.1f", done, rounded, rate)
        if accelerator.is_main_process:
            if done == last or (config.save_every and done % config.save_every == 0):
                save_state(state_file, module, ema, optimizer, done, made_with)
            if config.sample_every and done % config.sample_every == 0:
                _sample(stage, trained, ema, out, done)
    bar.close()
    if accelerator.is_main_process and last == config.steps:
        with _averaged(trained, ema):
            stage.finish(out)
        logger.info("done: the result is in %s", out)
    if writer:
        writer.close()
    # The averaging wrapper holds on to the process group: freed after the group, its threads can abort the process.
    del wrapped
    accelerator.free_memory()


def _pin(rank: int, world: int, threads: int) -> None:
    """Keep each CPU process on cores of its own: left to wander, two single-thread processes meet on one core."""
    if world == 1 or not threads or torch.cuda.is_available() or not hasattr(os, "sched_setaffinity"):
        return
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) >= world * threads:
        os.sched_setaffinity(0, cores[rank * threads : (rank + 1) * threads])


@contextmanager
def _averaged(trained: dict[str, nn.Parameter], ema: dict[str, Tensor]) -> Iterator[None]:
    """Within it the module holds the averaged weights."""
    kept = {name: value.detach().clone() for name, value in trained.items()}
    try:
        _put(trained, ema)
        yield
    finally:
        _put(trained, kept)


@torch.no_grad()
def _put(trained: dict[str, nn.Parameter], values: dict[str, Tensor]) -> None:
    for name, value in trained.items():
        value.copy_(values[name])


def _sample(stage: Stage, trained: dict, ema: dict, out: Path, step: int) -> None:
    from ...images import save_image

    with _averaged(trained, ema), torch.no_grad():
        grid = stage.sample()
    if grid is not None:
        (out / "samples").mkdir(parents=True, exist_ok=True)
        save_image(grid, out / "samples" / f"{step:07d}.png")


def _writer(out: Path) -> object:
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(out / "logs"))
