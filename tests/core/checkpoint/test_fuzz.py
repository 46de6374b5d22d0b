"""A short run of the fuzzer; `python -m tests.core.checkpoint.fuzz --count 5000` is a long one."""

import os

import pytest

from . import fuzz


@pytest.mark.skipif(os.name == "nt", reason="POSIX timers")
@pytest.mark.parametrize(("kind", "count"), [("style", 200), ("checkpoint", 40)])
def test_damaged_files_are_refused_or_read_right(kind, count, tmp_path):
    assert fuzz.run(kind, count, seed=1, folder=tmp_path) == []


def test_the_fuzzer_sees_a_changed_number(tmp_path, monkeypatch):
    """A reader that compares no checksums is found out."""
    monkeypatch.setattr("context_diffusion.checkpoint.header.TensorFile._compare", lambda *_: None)
    faults = fuzz.run("style", 100, seed=1, folder=tmp_path)
    assert any("taken with other values" in fault for fault in faults)
