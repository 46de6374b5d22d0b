"""Files: what is no file, JSON of strangers, and writing whole or not at all."""

from __future__ import annotations

import os
import stat
import time
from pathlib import Path

import pytest
import torch

from context_diffusion.errors import ContextDiffusionError, brief
from context_diffusion.files import open_regular, parse_json, write_atomically, write_tensors


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[1e999]", "number too large"),
        ("[-Infinity]", "number too large"),
        ('{"a": NaN}', "number too large"),
        (f'{{"a": {"9" * 5000}}}', "not JSON"),
        (f"[{10**18}0]", "number too large"),
        ("[" * 40 + "]" * 40, "nested deeper"),
        ("[" * 1000 + "]" * 1000, "nested deeper|recursion"),
        ("[" * 100_000 + "]" * 100_000, "not JSON"),
        ('["\\ud800"]', "surrogates not allowed"),
        ('{"\\udc00": 1}', "surrogates not allowed"),
        (b'"\xff"', "can't decode"),
        ('"a"'.encode("utf-16"), "not JSON"),
        ("{", "not JSON"),
    ],
)
def test_json_that_is_refused(text, words):
    with pytest.raises(ContextDiffusionError, match=words):
        parse_json(text)


def test_json_that_is_read():
    assert parse_json('{"a": [1, -2.5e3, true, null, "\\ud83c\\udf15"]}') == {"a": [1, -2500.0, True, None, "🌕"]}
    assert parse_json(b"[[[1e300]]]") == [[[1e300]]]


def test_messages_can_be_shown_and_end():
    message = str(ContextDiffusionError("a\nb\x1b[31m\ud800 " + "x" * 100_000 + " save it again"))
    assert message.startswith("a\\nb\\x1b[31m\\ud800 xxx") and message.endswith("x save it again")
    assert message.isprintable() and len(message) < 1100
    assert len(brief([["x" * 10_000] * 1000] * 1000)) < 5000
    assert brief({"width": 3}) == "{'width': 3}"


@pytest.mark.skipif(os.name == "nt", reason="POSIX pipes")
def test_what_is_no_file_is_named(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path, words in ((pipe, "a named pipe"), (tmp_path, "a folder"), (Path("/dev/null"), "a device")):
        with pytest.raises(ContextDiffusionError, match=f"is {words}: give a picture"):
            open_regular(path, "a picture")
    for path in (pipe, Path("/dev/null")):
        with pytest.raises(ContextDiffusionError, match="cannot write .* no regular file"):
            with write_atomically(path) as temporary:
                temporary.write_text("over it")
    assert stat.S_ISFIFO(pipe.stat().st_mode) and os.listdir(tmp_path) == ["pipe"]


@pytest.mark.skipif(os.name == "nt", reason="POSIX modes and links")
def test_permissions_and_links_stay(tmp_path):
    real, link = tmp_path / "elsewhere" / "real", tmp_path / "link"
    link.symlink_to(real)
    with write_atomically(link) as temporary:  # the link leads to a file and a folder that are not there yet
        temporary.write_text("first")
    assert link.is_symlink() and real.read_text() == "first"
    real.chmod(0o640)
    with write_atomically(link) as temporary:
        temporary.unlink()
        temporary.touch(0o600)  # as safetensors makes its files
    assert link.is_symlink() and stat.S_IMODE(real.stat().st_mode) == 0o640
    assert os.listdir(real.parent) == ["real"]


def test_what_killed_saves_left_is_swept(tmp_path):
    old, running, other = (tmp_path / name for name in (f".{'a' * 16}.part", f".{'b' * 16}.part", ".mine.part"))
    for path in (old, running, other):
        path.write_text("half")
    for path in (old, other):
        os.utime(path, (time.time() - 7200,) * 2)
    write_tensors(tmp_path / "x.safetensors", {"a": torch.zeros(2)})
    assert {path.name for path in tmp_path.iterdir()} == {running.name, other.name, "x.safetensors"}


def test_a_failed_write_leaves_nothing(tmp_path):
    path = tmp_path / "x"
    path.write_text("before")
    with pytest.raises(KeyboardInterrupt), write_atomically(path) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "before" and os.listdir(tmp_path) == ["x"]
