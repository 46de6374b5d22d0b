"""`context-diffusion train`: starting processes, passing on how they ended, stopping them together."""

import errno
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from context_diffusion.cli import main
from context_diffusion.cli.train import _environment
from context_diffusion.errors import ContextDiffusionError
from context_diffusion.training import __main__ as worker
from context_diffusion.training.run.launch import launch

ROOT = Path(__file__).parents[3]
LAUNCH = "context_diffusion.training.run.launch.launch"
CONFIG = """
[run]
stage = "vae"
data = "{data}"
out = "{out}"
steps = 1
batch_size = 1
learning_rate = 1e-3
processes = {processes}
"""


def python(code):
    return [sys.executable, "-c", textwrap.dedent(code)]


def wait_for(condition, seconds=60):
    """Poll; a loaded machine may be slow."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # A process that has ended and is not yet collected counts as gone.
    status = Path(f"/proc/{pid}/stat")
    return not status.exists() or status.read_text().rpartition(")")[2].split()[0] != "Z"


def test_processes_get_their_ranks_and_one_address(tmp_path):
    code = f"""
        import os
        names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "EXTRA")
        open(r"{tmp_path}/" + os.environ["RANK"], "w").write(" ".join(os.environ[name] for name in names))
    """
    assert launch(python(code), 3, {**os.environ, "EXTRA": "here"}) == 0
    told = [(tmp_path / str(rank)).read_text().split() for rank in range(3)]
    assert [words[:3] for words in told] == [[str(rank), str(rank), "3"] for rank in range(3)]
    assert len({tuple(words[3:]) for words in told}) == 1 and told[0][5] == "here"


def test_one_process_runs_without_ranks():
    environment = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    code = "import os, sys; sys.exit('RANK' in os.environ or 'WORLD_SIZE' in os.environ)"
    assert launch(python(code), 1, environment) == 0


def test_exit_code_of_the_one_that_fails_and_no_process_left(tmp_path):
    code = f"""
        import os, sys, time
        open(r"{tmp_path}/" + os.environ["RANK"], "w").write(str(os.getpid()))
        if os.environ["RANK"] == "1":
            while not os.path.exists(r"{tmp_path}/0"):
                time.sleep(0.05)
            print("error: rank one has had enough", file=sys.stderr)
            sys.exit(7)
        time.sleep(600)
    """
    caller = f"import os, sys; from context_diffusion.training.run import launch as m; m._GRACE = 0.5; sys.exit(m.launch({python(code)!r}, 2, dict(os.environ)))"  # noqa: E501
    result = subprocess.run([sys.executable, "-c", caller], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (7, "error: rank one has had enough\n")
    wait_for(lambda: not any(alive(int((tmp_path / rank).read_text())) for rank in "01"))


def test_a_killed_process_counts_as_failed():
    code = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    assert launch(python(code), 1, dict(os.environ)) == 128 + signal.SIGKILL


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopping_stops_the_processes(tmp_path, number, code):
    worker = f"""
        import os, time
        open(r"{tmp_path}/" + os.environ["RANK"], "w").write(str(os.getpid()))
        time.sleep(600)
    """
    caller = f"""
        import os, signal, sys
        # A shell starts what it puts in the background with SIGINT ignored, and tests may run there.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        from context_diffusion.cli import main
        from context_diffusion.training.run.launch import launch
        import context_diffusion.cli as cli
        class Arguments:
            verbose = False
            run = staticmethod(lambda arguments: launch({python(worker)!r}, 2, dict(os.environ)))
        class Parser:
            parse_args = staticmethod(lambda argv: Arguments)
        cli.build_parser = lambda: Parser
        sys.exit(main([]))
    """
    process = subprocess.Popen(python(caller), cwd=ROOT, stderr=subprocess.PIPE, text=True)
    try:
        wait_for(lambda: all((tmp_path / rank).exists() and (tmp_path / rank).read_text() for rank in "01"))
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == code
    assert err == ("error: stopped\n" if number == signal.SIGINT else "")
    wait_for(lambda: not any(alive(int((tmp_path / rank).read_text())) for rank in "01"))


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_processes_end_when_the_launcher_is_killed(tmp_path):
    """Otherwise they would train on, and the same command given again would write to the same state."""
    worker = f"""
        import os, time
        from context_diffusion.training.run.launch import end_with_launcher
        end_with_launcher()
        open(r"{tmp_path}/" + os.environ["RANK"], "w").write(str(os.getpid()))
        time.sleep(600)
    """
    caller = f"""
        import os
        from context_diffusion.training.run.launch import launch
        launch({python(worker)!r}, 2, dict(os.environ))
    """
    process = subprocess.Popen(python(caller), cwd=ROOT)
    try:
        wait_for(lambda: all((tmp_path / rank).exists() and (tmp_path / rank).read_text() for rank in "01"))
    finally:
        process.kill()
    wait_for(lambda: not any(alive(int((tmp_path / rank).read_text())) for rank in "01"))


@pytest.mark.parametrize(
    ("gpus", "batches", "processes"), [(0, 3, 3), (1, 2, 1), (2, 2, 2), (4, 2, 2), (2, 3, 1), (4, 6, 3)]
)
def test_no_two_processes_are_on_one_gpu(monkeypatch, tmp_path, gpus, batches, processes):
    started = []
    monkeypatch.setattr("context_diffusion.training.run.placement.accelerator_count", lambda: gpus)
    monkeypatch.setattr(LAUNCH, lambda *arguments: started.append(arguments) or 0)
    config = tmp_path / "stage.toml"
    config.write_text(CONFIG.format(data=tmp_path, out=tmp_path / "run", processes=1))
    assert main(["train", str(config), "--processes", str(batches)]) == 0
    ((command, count, environment),) = started
    assert count == processes
    # Each must know of all the batches, its own being what its rank leaves it.
    assert command[command.index("--processes") + 1] == str(batches)
    assert ("ACCELERATE_USE_CPU" in environment) == (gpus == 0)


def test_what_the_processes_find_in_their_environment(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert _environment(2, 3)["OMP_NUM_THREADS"] == "3"
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    assert _environment(2, 0)["OMP_NUM_THREADS"] == "4"
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert _environment(2, 3)["OMP_NUM_THREADS"] == "5"


def test_wrong_config_starts_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(LAUNCH, lambda *arguments: pytest.fail("started"))
    config = tmp_path / "stage.toml"
    (tmp_path / "file").touch()
    for text, name in (
        ("[run]\nsteps = 1", "lacks"),
        (CONFIG.format(data=tmp_path, out=tmp_path / "file" / "run", processes=1), "file"),
    ):
        config.write_text(text)
        assert main(["train", str(config)]) == 2
        err = capsys.readouterr().err
        assert err.startswith("error: ") and err.count("\n") == 1 and name in err


@pytest.mark.parametrize(
    "failure, code, said",
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "state.safetensors"), 1, "state.safetensors: No space"),
        (MemoryError(), 1, "out of memory"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB.\nSee the manual"), 1, "out of memory"),
        (RuntimeError("unable to mmap 8 bytes: Cannot allocate memory (12)"), 1, "out of memory"),
        (ContextDiffusionError("batch_size is 3"), 2, "batch_size is 3"),
        (KeyboardInterrupt(), 130, "stopped"),
    ],
)
def test_what_stops_a_worker_is_one_line(tmp_path, monkeypatch, capsys, failure, code, said):
    def fail(*arguments):
        raise failure

    monkeypatch.setattr(worker, "make_stage", lambda config: None)
    monkeypatch.setattr(worker, "train", fail)
    config = tmp_path / "stage.toml"
    config.write_text(CONFIG.format(data=tmp_path, out=tmp_path / "run", processes=1))
    assert worker.main([str(config)]) == code
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1 and said in err


@pytest.mark.parametrize("bug", [RuntimeError("a mistake of ours"), KeyError("name"), ModuleNotFoundError(name="ours")])
def test_a_bug_in_a_worker_is_not_hidden(tmp_path, monkeypatch, bug):
    def fail(config):
        raise bug

    monkeypatch.setattr(worker, "make_stage", fail)
    config = tmp_path / "stage.toml"
    config.write_text(CONFIG.format(data=tmp_path, out=tmp_path / "run", processes=1))
    with pytest.raises(type(bug)) as caught:
        worker.main([str(config)])
    assert caught.value is bug


def test_mistake_found_by_all_processes_is_said_once(tmp_path):
    config = tmp_path / "stage.toml"
    config.write_text(CONFIG.format(data=tmp_path / "nothing", out=tmp_path / "run", processes=2))
    command = [sys.executable, "-m", "context_diffusion", "train", str(config)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 2, result.stderr
    errors = [line for line in result.stderr.splitlines() if line]
    assert len(errors) == 1 and errors[0].startswith("error: ") and "data emoji" in errors[0]
