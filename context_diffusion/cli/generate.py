"""`context-diffusion generate`: images from context images, a query image and a prompt."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..choices import AGGREGATIONS, FITS, MAPS
from ..errors import ContextDiffusionError
from ..model.latents import vae_scale_factor
from ..pretrained import DEFAULT_MODEL, find_model
from ..ranges import CONTEXT_WEIGHT, GUIDANCE, LAYOUT_STRENGTH, LORA_STRENGTH, PIXELS, SHARE, STEPS, whole_number
from .inputs import Inputs, collect_inputs
from .outputs import check_keeps, check_writable, output_files
from .parser import new_command

if TYPE_CHECKING:
    import torch
    from torch import Tensor

# Images sampled in one go: more would need memory and save little time.
_AT_ONCE = 8

# Weights of a UNet up to which one thread computes it, see `_set_threads`; the bundled model has 7 million.
_SMALL_UNET = 50_000_000

_EPILOG = """\
Give at least one of --context, --query, --prompt or --example.

examples:
  context-diffusion generate --example moon-camp --grid --out moon.png
  context-diffusion generate --context a.png b.png c.png --prompt "a lighthouse" --out lighthouse.png
  context-diffusion generate --context a.png b.png --query photo.jpg --map softedge --out redrawn.png
  context-diffusion generate --context mine/*.png --query todo/*.png --map softedge --out set.png
  context-diffusion generate --query lines.png --map none --prompt "camping, black line art" --out camp.png
"""


def add_command(commands: argparse._SubParsersAction) -> None:
    """Add `generate` and its options."""
    parser = new_command(
        commands,
        "generate",
        run,
        help="make images",
        description="Make images from context images (the style), a query image (the layout) and a prompt.",
        epilog=_EPILOG,
    )
    what = parser.add_argument_group("what to draw")
    what.add_argument("--context", nargs="+", type=Path, metavar="IMAGE", help="images whose style to take, any number")
    what.add_argument(
        "--context-weights",
        nargs="+",
        type=CONTEXT_WEIGHT,
        metavar="W",
        help="one number an image; default: all 1",
    )
    what.add_argument(
        "--aggregation",
        choices=AGGREGATIONS,
        help="how context images are joined (as the model was trained: mean)",
    )
    what.add_argument(
        "--query",
        nargs="+",
        type=Path,
        metavar="IMAGE",
        help="image whose layout to keep; of several, each gets its own",
    )
    what.add_argument(
        "--map", choices=tuple(MAPS), help="what to take of the query; none: the query is a map already (none)"
    )
    what.add_argument("--prompt", metavar="TEXT", help="what to draw, in words")
    what.add_argument("--negative-prompt", metavar="TEXT", help="what to keep away from, in words")
    what.add_argument(
        "--example",
        metavar="NAME",
        help="inputs that came with the package; `context-diffusion info` lists them",
    )
    what.add_argument("--fit", choices=FITS, default="crop", help="how images of other proportions are fitted (crop)")

    how = parser.add_argument_group("how to draw it")
    how.add_argument(
        "--model",
        default=DEFAULT_MODEL,
        metavar="NAME-OR-FILE",
        help=f"bundled name or .safetensors file ({DEFAULT_MODEL})",
    )
    how.add_argument(
        "--lora",
        nargs="+",
        type=_lora,
        default=[],
        metavar="FILE[:STRENGTH]",
        help="LoRA files of that model, such as one of a style of your own; strength: 1",
    )
    how.add_argument("--steps", type=STEPS, default=20, help="sampling steps: more is slower and cleaner (20)")
    how.add_argument(
        "--text-guidance",
        type=GUIDANCE,
        default=3.0,
        metavar="G",
        help="how much the prompt counts; 1 is off (3)",
    )
    how.add_argument(
        "--context-guidance",
        type=GUIDANCE,
        default=3.0,
        metavar="G",
        help="how much the context counts; 1 is off (3)",
    )
    how.add_argument(
        "--layout-strength",
        type=LAYOUT_STRENGTH,
        default=1.0,
        metavar="S",
        help="how much the query counts; 0 is off (1)",
    )
    how.add_argument(
        "--layout-start",
        type=SHARE,
        default=0.0,
        metavar="T",
        help="share of the steps where the query sets in (0)",
    )
    how.add_argument(
        "--layout-end",
        type=SHARE,
        default=1.0,
        metavar="T",
        help="share of the steps where it ends (1)",
    )
    how.add_argument(
        "--seed",
        type=whole_number(0, 2**62),
        default=0,
        help="another number, another image; image i has seed + i (0)",
    )
    how.add_argument("--height", type=PIXELS, metavar="PIXELS", help="of the images; default: the model's own")
    how.add_argument("--width", type=PIXELS, metavar="PIXELS", help="of the images; default: the model's own")
    how.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps (auto)")
    how.add_argument("--dtype", default="auto", help="auto, fp32, fp16, bf16 (auto)")
    how.add_argument(
        "--threads", type=whole_number(1), metavar="N", help="CPU threads (1 for small models, else PyTorch's choice)"
    )

    out = parser.add_argument_group("where to")
    out.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="FILE",
        help=".png, .jpg or .webp; several images get FILE-1, FILE-2, ..., those of several queries FILE-QUERYNAME",
    )
    out.add_argument(
        "--num-images", type=whole_number(1), default=1, metavar="N", help="how many images, of each query (1)"
    )
    out.add_argument(
        "--grid", action="store_true", help="write one picture with the inputs and all outputs side by side"
    )


def _lora(text: str) -> tuple[Path, float]:
    """FILE or FILE:STRENGTH; a colon may be a part of the name."""
    file, colon, strength = text.rpartition(":")
    if not colon or strength.endswith(".safetensors"):
        return Path(text), 1.0
    return Path(file), LORA_STRENGTH(strength)


def run(arguments: argparse.Namespace) -> int:
    """Check everything that can be checked, then load the model, sample and write."""
    inputs = collect_inputs(arguments)
    from ..images import check_image_path

    check_image_path(arguments.out)
    grid = arguments.grid
    files = [arguments.out] if grid else output_files(arguments.out, inputs.queries, arguments.num_images)
    for file in files:
        check_image_path(file)
    check_keeps([*inputs.context, *inputs.queries], files)
    check_writable(files[0])

    model_path = find_model(arguments.model)
    from ..checkpoint.header import open_tensors
    from ..checkpoint.read import read_metadata
    from ..devices import pick_device, pick_dtype
    from ..images import load_image_as_tensor, save_image

    device = pick_device(arguments.device)
    dtype = pick_dtype(device, arguments.dtype)
    for file, _ in arguments.lora:
        with open_tensors(file):
            pass
    metadata = read_metadata(model_path)
    _set_threads(arguments.threads, metadata)
    height, width, encoder_size = _sizes(arguments, metadata)
    context = [_load_context(path, encoder_size, arguments.fit) for path in inputs.context]
    queries = [load_image_as_tensor(path, (height, width), fit=arguments.fit) for path in inputs.queries]

    outputs = []
    for images in _sample(arguments, inputs, context, queries, model_path, device, dtype):
        for image in images:
            if not grid:
                print(save_image(image, files[len(outputs)]))
            outputs.append(image)
    if grid:
        from .grid import inputs_and_outputs

        print(save_image(inputs_and_outputs(queries, inputs.map_name, context, outputs), arguments.out))
    return 0


def _set_threads(threads: int | None, metadata: dict[str, Any]) -> None:
    """As many CPU threads as are asked for; one for a small model, unless OMP_NUM_THREADS asks for others.

    Threads wait for each other at every layer. Those of a small model are over so soon that two threads gain little,
    and beside a busy process, where the one that is waited for may not be running, they lose much.
    """
    import torch

    if threads is None and "OMP_NUM_THREADS" not in os.environ:
        threads = 1 if metadata["parts"]["unet"]["parameters"] <= _SMALL_UNET else None
    if threads is not None:
        torch.set_num_threads(threads)


def _sizes(arguments: argparse.Namespace, metadata: dict[str, Any]) -> tuple[int, int, int]:
    """Height and width of the images, and the side of what the image encoder sees, in pixels."""
    config = metadata["config"]
    factor = vae_scale_factor(config["vae"]) if "vae" in config else 8
    own = config["unet"].get("sample_size") or 16
    rows, columns = (own, own) if isinstance(own, int) else own
    height, width = arguments.height or factor * rows, arguments.width or factor * columns
    for name, side in (("height", height), ("width", width)):
        if side % factor:
            near = max(factor, round(side / factor) * factor)
            raise ContextDiffusionError(
                f"{name} is {side}, which the model's VAE cannot take: give a multiple of {factor}, such as {near}"
            )
    return height, width, config.get("image_encoder", {}).get("image_size", min(height, width))


def _load_context(path: Path, size: int, fit: str) -> Tensor:
    """What the image encoder sees of a file, (3, size, size): hundreds of whole photos would not fit into memory."""
    from ..images import load_image_as_tensor
    from ..model.visual_context import clip_crop

    if fit == "crop":
        return clip_crop(load_image_as_tensor(path)[None], size)[0]
    return load_image_as_tensor(path, size, fit=fit)


def _sample(
    arguments: argparse.Namespace,
    inputs: Inputs,
    context: list[Tensor],
    queries: list[Tensor],
    model_path: Path,
    device: torch.device,
    dtype: torch.dtype,
) -> Iterator[Tensor]:
    """Batches of images (B, 3, H, W) in [0, 1], on the CPU, one query after another."""
    import torch

    from ..sampling.pipeline import ContextDiffusionPipeline

    pipe = ContextDiffusionPipeline.from_single_file(model_path, dtype=dtype, device=device)
    for file, strength in arguments.lora:
        pipe.load_lora(file, strength)
    pipe.set_progress_bar_config(disable=not sys.stderr.isatty(), desc="sampling")
    parts = [(query, first) for query in queries or [None] for first in range(0, arguments.num_images, _AT_ONCE)]
    for query, first in parts:
        count = min(_AT_ONCE, arguments.num_images - first)
        # Noise from the CPU, one generator an image: neither the device nor the number of images changes it.
        seeds = [arguments.seed + first + offset for offset in range(count)]
        images = pipe(
            prompt=inputs.prompt,
            context_images=context or None,
            context_weights=arguments.context_weights,
            query_image=query,
            map_name=inputs.map_name,
            negative_prompt=arguments.negative_prompt,
            height=arguments.height,
            width=arguments.width,
            num_inference_steps=arguments.steps,
            text_guidance=arguments.text_guidance,
            context_guidance=arguments.context_guidance,
            aggregation=arguments.aggregation,
            layout_strength=arguments.layout_strength,
            layout_start=arguments.layout_start,
            layout_end=arguments.layout_end,
            num_images_per_prompt=count,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
            output_type="pt",
        ).images
        yield images.float().cpu()
