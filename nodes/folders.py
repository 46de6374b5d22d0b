"""Where the nodes look for files: folders under `models`, and what extra_model_paths.yaml adds to them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

MODELS = "context_diffusion"
STYLES = "visual_context"
SUFFIX = ".safetensors"
# Behind the name of a file that comes with the pack, in the lists that nodes show.
BUNDLED = " (bundled)"


def register_folders() -> None:
    """Make ours kinds of model like the host's own. A second call changes nothing.

    Entries of extra_model_paths.yaml are in the host's table before any pack is loaded, without a suffix there: the
    suffix goes to what is there already.
    """
    import folder_paths

    for name in (MODELS, STYLES):
        folder = os.path.join(folder_paths.models_dir, name)
        folder_paths.add_model_folder_path(name, folder)
        folder_paths.folder_names_and_paths[name][1].add(SUFFIX)
        # There to put files in, as the host's own are. Where it may not be made, it is not needed either.
        with contextlib.suppress(OSError):
            os.makedirs(folder, exist_ok=True)
    # As for the host's own kinds: what its Save nodes write under this prefix is in the list, without being moved.
    folder_paths.add_model_folder_path(MODELS, os.path.join(folder_paths.get_output_directory(), MODELS))


def fingerprint(names: Iterable[str], path_of: Callable[[str], Path]) -> str:
    """Another value when one of the files is another one: the host keeps the result of a loader until then.

    Args:
        names: of the files in the list. All of them where another node gives the name, which is not known yet.
        path_of: a name's path, or an error that says that it is gone.
    """
    states = []
    for name in names:
        try:
            states.append(file_state(path_of(name)))
        except (OSError, ValueError):
            states.append(f"{name} missing")
    return "\n".join(states)


def file_state(path: Path) -> str:
    """Another text when the file is another one, or gone."""
    try:
        status = path.stat()
    except OSError:
        return f"{path} missing"
    # The file's number as well: two files saved within one tick of the clock differ in it.
    return f"{path} {status.st_ino} {status.st_mtime_ns} {status.st_size}"
