"""Vector and raster pictures as square PNG files over white."""

from __future__ import annotations

import io
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from ...files import write_atomically


def render_file(job: tuple[bytes, Path, int]) -> None:
    """One SVG or WebP -> one RGB PNG over white, written whole or not at all.

    Args:
        job: the picture, the file to write and the side in pixels; one argument, so that a pool can map it.
    """
    picture, path, size = job
    if picture[:4] == b"RIFF":
        image = Image.open(io.BytesIO(picture)).convert("RGBA").resize((size, size), Image.Resampling.LANCZOS)
    else:
        import resvg_py

        png = resvg_py.svg_to_bytes(
            svg_string=picture.decode(), width=size, height=size, skip_system_fonts=True, background="#ffffff"
        )
        image = Image.open(io.BytesIO(bytes(png))).convert("RGBA")
    if image.size != (size, size):
        # A picture that is not square is centred on white.
        image.thumbnail((size, size), Image.Resampling.LANCZOS)
        square = Image.new("RGBA", (size, size), "white")
        square.paste(image, ((size - image.width) // 2, (size - image.height) // 2), image)
        image = square
    over_white = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    with write_atomically(path) as scratch:
        over_white.save(scratch, format="PNG")


def render_missing(
    out: Path, jobs: Sequence[tuple[bytes, Path, int]], workers: int, what: str, quiet: bool | None = None
) -> None:
    """Render the pictures whose files are not there yet.

    Args:
        out: the data set's folder.
        jobs: see `render_file`.
        workers: processes.
        what: for the progress bar.
        quiet: hide it; None hides it off a terminal.
    """
    missing = [job for job in jobs if not job[1].exists()]
    for folder in {path.parent for _, path, _ in missing}:
        folder.mkdir(parents=True, exist_ok=True)
    if missing:
        # An earlier, smaller data set would no longer be right.
        (out / "index.json").unlink(missing_ok=True)
    with ProcessPoolExecutor(workers) as pool:
        done = pool.map(render_file, missing, chunksize=16)
        for _ in tqdm(done, desc=f"render {what}", total=len(missing), disable=quiet):
            pass
