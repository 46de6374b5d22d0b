"""Vector and raster pictures as square PNG files over white."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image

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
