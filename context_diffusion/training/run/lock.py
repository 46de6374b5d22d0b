"""One run at a time in a folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ...errors import ContextDiffusionError


@contextmanager
def only_run(out: Path) -> Iterator[None]:
    """Keep other runs out of a run's folder. The lock is the operating system's: it goes with the process.

    Raises:
        ContextDiffusionError: another run is at work there.
    """
    from filelock import FileLock, Timeout

    out.mkdir(parents=True, exist_ok=True)
    lock = FileLock(out / "run.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise ContextDiffusionError(
            f"another run is at work in {out}: wait for its end or stop it, or give another --out folder"
        ) from error
    try:
        yield
    finally:
        lock.release()
