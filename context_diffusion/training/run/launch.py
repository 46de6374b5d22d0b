"""Start the processes of one data-parallel run on this machine, and stop them together.

torchrun would do, but it answers a worker's one clear line with a report of its own and always leaves with 1.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from types import FrameType
from typing import IO

# How long processes get to end by themselves: after one of them failed, and after they were told to stop.
_GRACE = 10.0

# In the environment of the processes: their standard input ends when this one goes, whatever way.
_HELD_BY_STDIN = "CONTEXT_DIFFUSION_HELD_BY_STDIN"


def launch(command: Sequence[str], processes: int, environment: dict[str, str]) -> int:
    """Run `command` in several processes that find each other as torch.distributed expects.

    The first process speaks on our stderr. The others stay quiet, unless one of them
    fails for a reason of its own.

    Args:
        command: the program and its arguments, the same for all.
        processes: 1 or more; one alone is started without torch.distributed.
        environment: the processes' whole environment; rank and address are added.

    Returns:
        0 when all ended well, else the exit code of the one that failed first (128 + the signal's number if
        it was killed).

    Raises:
        KeyboardInterrupt: Ctrl-C here; all processes have ended by then.
    """
    workers: list[subprocess.Popen] = []
    speeches: list[IO[bytes] | None] = []
    handlers = {name: signal.signal(name, _leave) for name in _signals()}
    try:
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "WORLD_SIZE": str(processes)}
        for rank in range(processes):
            variables = {**environment, _HELD_BY_STDIN: "1"}
            if processes > 1:
                variables |= {**address, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            speech = None if rank == 0 else tempfile.TemporaryFile()  # noqa: SIM115, closed below
            speeches.append(speech)
            # In a session of its own a process does not get the terminal's Ctrl-C: it is stopped from here.
            workers.append(
                subprocess.Popen(command, env=variables, stdin=subprocess.PIPE, stderr=speech, start_new_session=True)
            )
        failed = _wait(workers)
        if failed is None:
            return 0
        # What stopped one often stops the others a moment later: let them say so.
        _wait_until_ended(workers, _GRACE)
        speech, code = speeches[failed], workers[failed].returncode
        if speech is not None and workers[0].poll() != code:
            # Otherwise the first process met the same mistake and has said so.
            speech.seek(0)
            sys.stderr.write(speech.read().decode(errors="replace"))
        return code if code > 0 else 128 - code
    finally:
        _stop(workers)
        for name, handler in handlers.items():
            signal.signal(name, handler)
        for pipe in (*speeches, *(worker.stdin for worker in workers)):
            if pipe is not None:
                pipe.close()


def end_with_launcher() -> None:
    """To be called in a process that `launch` started: it then ends when the launcher has gone, even killed.

    Otherwise it would train on with nobody left to stop it. Elsewhere nothing happens.
    """

    def wait() -> None:
        # Unbuffered: a thread that waits in a buffered read gets in the way of the interpreter's end.
        while os.read(0, 1):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    if os.environ.get(_HELD_BY_STDIN):
        threading.Thread(target=wait, daemon=True).start()


def _wait(workers: list[subprocess.Popen]) -> int | None:
    """Until all ended well (None) or one failed (its rank)."""
    while True:
        codes = [worker.poll() for worker in workers]
        for rank, code in enumerate(codes):
            if code:
                return rank
        if all(code == 0 for code in codes):
            return None
        time.sleep(0.2)


def _wait_until_ended(workers: list[subprocess.Popen], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while any(worker.poll() is None for worker in workers):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def _stop(workers: list[subprocess.Popen]) -> None:
    for worker in workers:
        if worker.poll() is None:
            worker.terminate()
    if not _wait_until_ended(workers, _GRACE):
        for worker in workers:
            if worker.poll() is None:
                worker.kill()
        _wait_until_ended(workers, _GRACE)


def _signals() -> list[signal.Signals]:
    """Signals that ask this process to go: the workers, being in other sessions, do not get them."""
    return [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]


def _leave(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
