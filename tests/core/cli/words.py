"""What tests of the command line look at."""

import numpy as np
from PIL import Image


def pixels(path):
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def one_error_line(text):
    return text.startswith("error: ") and text.count("\n") == 1 and text.endswith("\n")


def files(folder):
    """Every file in a folder, the hidden ones too."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
