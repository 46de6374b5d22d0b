"""Vector and raster pictures as square PNG files over white."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from ...errors import ContextDiffusionError
from ...files import write_atomically

# A picture (its content or its file), the image to write and its side in pixels.
Job = tuple[bytes | Path, Path, int]


def render_file(job: tuple[bytes, Path, int]) -> None:
    """One SVG or WebP -> one RGB PNG over white, written whole or not at all.

    Args:
        job: the picture, the file to write and the side in pixels; one argument, so that a pool can map it.
    """
    picture, path, size = job
    if picture[:4] == b"RIFF":
        image = Image.open(io.BytesIO(picture)).convert("RGBA").resize((size, size), Image.Resampling.LANCZOS)
    else:
        image = render_svg(picture.decode(), size)
    if image.size != (size, size):
        # A picture that is not square is centred on white.
        image.thumbnail((size, size), Image.Resampling.LANCZOS)
        square = Image.new("RGBA", (size, size), "white")
        square.paste(image, ((size - image.width) // 2, (size - image.height) // 2), image)
        image = square
    over_white = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    with write_atomically(path, durable=False) as scratch:
        over_white.save(scratch, format="PNG")


def render_svg(picture: str, size: int) -> Image.Image:
    """An SVG over white, RGBA, its longer side `size` pixels.

    Raises:
        ValueError: it is no SVG.
    """
    import resvg_py

    png = resvg_py.svg_to_bytes(
        svg_string=picture, width=size, height=size, skip_system_fonts=True, background="#ffffff"
    )
    return Image.open(io.BytesIO(bytes(png))).convert("RGBA")


def check_leftovers(folder: Path, jobs: Sequence[Job], what: str) -> None:
    """Images of an earlier, larger run would be in the data set without an entry in its index.

    Raises:
        ContextDiffusionError: the folder of the images holds others than those of the jobs.
    """
    wanted = {path for _, path, _ in jobs}
    if any(path not in wanted for path in folder.glob("*/*.png")):
        raise ContextDiffusionError(f"{folder} holds images of more {what} than these: give another --out folder")


def render_missing(
    out: Path,
    jobs: Sequence[Job],
    workers: int,
    what: str,
    quiet: bool | None = None,
    render: Callable[[Job], str | None] = render_file,
) -> list[tuple[Job, str | None]]:
    """Render the pictures whose files are not there yet.

    Args:
        out: the data set's folder.
        jobs: a picture, the file to write and the side in pixels each.
        workers: processes.
        what: for the progress bar.
        quiet: hide it; None hides it off a terminal.
        render: writes the file of a job.

    Returns:
        The jobs that were done, and what `render` said of each.
    """
    missing = [job for job in jobs if not job[1].exists()]
    for folder in {path.parent for _, path, _ in missing}:
        folder.mkdir(parents=True, exist_ok=True)
    if missing:
        # An earlier data set would no longer be right, nor the pixels that were read from it.
        (out / "index.json").unlink(missing_ok=True)
        shutil.rmtree(out / "cache", ignore_errors=True)
    with ProcessPoolExecutor(workers) as pool:
        done = pool.map(render, missing, chunksize=16)
        return list(zip(missing, tqdm(done, desc=f"render {what}", total=len(missing), disable=quiet), strict=True))
