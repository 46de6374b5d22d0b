"""Random arguments for the pipeline: each set gives a finite image or one clear line.

    python -m tests.core.sampling.random_arguments [--count 1000] [--seed 0]

Each set is drawn from its own number, which names it in what is printed.
"""

import argparse
import collections
import math
import random
import traceback

import numpy as np
import torch
from PIL import Image

from context_diffusion.errors import ContextDiffusionError

from ..tiny_pipeline import make_pipe, picture, seeded

# What no argument is.
NONSENSE = [
    None, True, -1, 0, 3, 0.5, 1e38, -1e38, math.nan, math.inf, 10**30, 3 + 1j, "", "moon", "\ud83d", b"moon", [], [[]],
    [None], {}, {"a": 1}, (1, 2), object(), int, torch.zeros(0), torch.tensor(2), np.float32(0.5), np.zeros((2, 2)),
    torch.full((1, 3, 8, 8), math.nan), torch.zeros(3, 8, 8, dtype=torch.uint8), Image.new("RGB", (5, 7)),
]  # fmt: skip
IMAGES = [
    picture(1), picture(2, 8, 100), picture(3, 1, 1), torch.rand(2, 3, 20, 30), Image.new("RGBA", (9, 40)),
    Image.new("I;16", (8, 8)), [picture(4), Image.new("L", (3, 3))], [[picture(5)], []], [picture(6)] * 3,
    torch.rand(1, 4, 8, 8), picture(7) * 255, picture(8) - 0.5, picture(9).half(), picture(10).double(), [None],
    [[picture(1)], [picture(2), picture(3)]], torch.rand(3, 0, 8),
]  # fmt: skip
TEXTS = [
    "a yellow moon",
    "",
    " " * 300,
    "moon " * 500,
    ["a", "b"],
    ["", "moon", "x"],
    ["a", None],
    "\0",
    "月🌙",
    ["\udcff"],
]
NUMBERS = [0, 1, 2, 1.0, 3.5, -2, 0.25, 100, 101, 1e-30, 1e20, "2", np.int64(2), np.float64(0.5), torch.tensor(0.5)]
EMBEDS = [
    torch.randn(1, 77, 32), torch.randn(2, 20, 32), torch.randn(1, 5, 32), torch.zeros(0, 5, 32), torch.randn(1, 0, 32),
    torch.randn(1, 5, 31), torch.full((1, 5, 32), 1e38), torch.full((1, 5, 32), 1e4), torch.randn(1, 5, 32).half(),
    torch.zeros(1, 5, 32, dtype=torch.int64),
]  # fmt: skip
LIKELY = {
    "prompt": TEXTS,
    "negative_prompt": TEXTS,
    "context_images": IMAGES,
    "query_image": IMAGES,
    "query_map": IMAGES,
    "image": IMAGES,
    "context_weights": [
        [1.0, 0.5], [0, 0], [1e20, 1], [1e-45, 1e-45], [1], [[1.0], [1.0, 2.0]], [None, [1.0]], [[1.0], 2.0], [-1, 1],
        np.ones(2), torch.ones(2), torch.ones(2, 2), [1000, 1000],
    ],
    "map_name": ["none", "canny", "softedge", "segmentation", "depth", "normal", "scribble", "laplace", ["canny"]],
    "aggregation": ["mean", "sum", "concat", "max"],
    "height": [8, 16, 24, 40, 64, 72, 60, np.int64(32), torch.tensor(16), 10**6],
    "width": [8, 16, 56, 64, 7, np.int32(32), 2**40],
    "num_inference_steps": [1, 2, 3, 5, np.int64(2), 1001, 10**9],
    "text_guidance": NUMBERS,
    "context_guidance": NUMBERS,
    "layout_strength": NUMBERS,
    "layout_start": NUMBERS,
    "layout_end": NUMBERS,
    "strength": NUMBERS,
    "eta": NUMBERS,
    "num_images_per_prompt": [1, 2, 3, np.int64(2)],
    "generator": [seeded(1), [seeded(1), seeded(2)], [seeded(3)], [], [seeded(1), None]],
    "latents": [
        torch.randn(1, 4, 8, 8), torch.randn(2, 4, 3, 5), torch.randn(1, 3, 8, 8), torch.zeros(1, 4, 0, 8),
        torch.full((1, 4, 8, 8), 1e38), torch.full((1, 4, 8, 8), 1e4), torch.randn(1, 4, 8, 8).half(),
    ],
    "prompt_embeds": EMBEDS,
    "negative_prompt_embeds": EMBEDS,
    "context_embeds": EMBEDS,
    "output_type": ["pil", "pt", "np", "latent", "jpg"],
    "return_dict": [True, False],
    "callback_on_step_end": [
        lambda *_: None, lambda *_: {}, lambda *_: 3, lambda pipe, i, t, tensors: tensors,
        lambda pipe, i, t, tensors: {"latents": tensors["latents"] * 2} if "latents" in tensors else None,
        lambda pipe, i, t, tensors: {"unknown": 3},
    ],
    "callback_on_step_end_tensor_inputs": [
        ["latents"], ["query_map"], ["noise"], ("context_embeds", "latents"), "latents",
    ],
}  # fmt: skip
MOST_STEPS = 20


def draw(number):
    """One set of arguments."""
    rng = random.Random(number)
    arguments = {"num_inference_steps": rng.randint(1, 3), "output_type": "pt", "generator": seeded(number)}
    for name in ("prompt", "context_images", "query_map"):
        if rng.random() < 0.5:
            arguments[name] = rng.choice(LIKELY[name][:2])
    for name in rng.sample(list(LIKELY), rng.randint(1, 4)):
        arguments[name] = rng.choice(NONSENSE if rng.random() < 0.15 else LIKELY[name])
    steps = arguments["num_inference_steps"]
    if isinstance(steps, int) and MOST_STEPS < steps <= 10_000:  # would be taken, and take long
        arguments["num_inference_steps"] = MOST_STEPS
    return arguments


def outcome(pipe, arguments):
    """`image` or `refused`; what else happened, in one line, is a fault."""
    try:
        made = pipe(**arguments)
        images = made[0]
        for image in images:
            pixels = torch.as_tensor(np.asarray(image, dtype=np.float32))
            assert torch.isfinite(pixels).all(), "the image is not finite"
    except ContextDiffusionError as error:
        words = str(error)
        return "refused" if words and "\n" not in words and words.isprintable() else f"an unclear line: {words!r}"
    except Exception as error:  # whatever it is, it is what is looked for
        place = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__}: {' '.join(str(error).split())[:160]} ({place.filename}:{place.lineno})"
    return "image"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0, help="number of the first set")
    options = parser.parse_args()
    pipe = make_pipe(prediction_type="flow")
    counts = collections.Counter()
    for number in range(options.seed, options.seed + options.count):
        result = outcome(pipe, draw(number))
        counts[result if result in ("image", "refused") else "fault"] += 1
        if result not in ("image", "refused"):
            print(number, {name: str(value)[:60] for name, value in draw(number).items()}, result, flush=True)
    print(dict(counts))
    return counts["fault"] > 0


if __name__ == "__main__":
    raise SystemExit(main())
