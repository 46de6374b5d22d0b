"""Rows a second of the bundled model's training step in each precision, side by side.

    OMP_NUM_THREADS=1 python -m benchmarks.training_precision [--rounds 5] [--rows 32]

The precisions take turns, so that a busy machine slows all of them; each ratio is of two runs of the same round, given
as the median with the smallest and the largest. One process: the step is forward, backward and the optimizer's.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import time
from collections.abc import Callable

import torch

from context_diffusion.checkpoint.read import load_checkpoint
from context_diffusion.precision import multiply_in_bf16
from context_diffusion.pretrained import bundled_model_path
from context_diffusion.training.begin.first_model import freeze_unused
from context_diffusion.training.episodes.groups import context_matrix
from context_diffusion.training.noise_levels import noise_levels
from context_diffusion.training.run.optimizer import MuonAdamW
from context_diffusion.training.settings import DiffusionSettings
from context_diffusion.training.stages.diffusion import DiffusionObjective

REPEATS = DiffusionSettings.repeats


def made_up_batch(objective: DiffusionObjective, rows: int) -> dict:
    """A batch of the real shapes; what is in it does not matter to the time."""
    model, generator = objective.model, torch.Generator().manual_seed(0)
    unique, channels = rows // REPEATS, model.unet.config.in_channels
    order = torch.arange(unique).repeat_interleave(REPEATS)
    ids = model.tokenizer(
        ["", *["a face with a hat"] * unique], padding="max_length", max_length=77, truncation=True, return_tensors="pt"
    ).input_ids
    queries = torch.rand(unique, 3, 128, 128, generator=generator)
    return {
        "rows": order,
        "images": torch.rand(unique, 3, 128, 128, generator=generator),
        "queries": queries.contiguous(memory_format=torch.channels_last),
        "latents": torch.randn(unique, channels, 16, 16, generator=generator),
        "ids": ids,
        "text": order + 1,
        "context": context_matrix(order, DiffusionSettings.members, generator, DiffusionSettings.context_dropout),
        "layout": torch.ones(rows),
        "noise": torch.randn(rows, channels, 16, 16, generator=generator),
        "levels": noise_levels(rows, generator),
    }


def training_step(precision: str, model: torch.nn.Module, rows: int) -> Callable[[], None]:
    """One step of training in that precision, ready to be called."""
    objective = DiffusionObjective(model).to(memory_format=torch.channels_last)
    if precision == "bf16_matmul":
        multiply_in_bf16(objective)
    trained = [(name, value) for name, value in objective.named_parameters() if value.requires_grad]
    optimizer = MuonAdamW(trained, lr=1e-6, dtype=torch.bfloat16 if precision == "bf16_matmul" else torch.float32)
    batch = made_up_batch(objective, rows)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss, _ = objective(batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def build_parser() -> argparse.ArgumentParser:
    """The options of the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=32)
    return parser


def main() -> int:
    options = build_parser().parse_args()
    model = load_checkpoint(bundled_model_path(), dtype=torch.float32)
    model.vae = None
    freeze_unused(model)
    steps = {name: training_step(name, copy.deepcopy(model), options.rows) for name in ("fp32", "bf16", "bf16_matmul")}
    rounds = []
    for number in range(options.rounds + 1):
        seconds = {}
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            seconds[name] = time.perf_counter() - start
        # The first round warms up.
        if number:
            rounds.append(seconds)
    for name in steps:
        rate = options.rows / statistics.median(seconds[name] for seconds in rounds)
        ratios = sorted(seconds["fp32"] / seconds[name] for seconds in rounds)
        spread = f"{ratios[0]:.2f} to {ratios[-1]:.2f}"
        print(f"{name}: {rate:.1f} rows/s, {statistics.median(ratios):.2f} times fp32 ({spread})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
