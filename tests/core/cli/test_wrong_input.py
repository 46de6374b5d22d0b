"""`context-diffusion generate`: every wrong input and every failure as one line with the right exit code."""

import errno
import json
import os
import pickle
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from context_diffusion.cli import generate

from .words import files, one_error_line


@pytest.mark.parametrize(
    "words, names",
    [
        ([], ["nothing to go by", "--prompt"]),
        (["--prompt", "  "], ["nothing to go by"]),
        (["--prompt", "moon", "--map", "canny"], ["--map", "--query"]),
        (["--prompt", "moon", "--context-weights", "1"], ["1 numbers", "0 context images"]),
        (["--example", "moon"], ["'moon'", "moon-camp"]),
        (["--prompt", "moon", "--steps", "0"], ["--steps", "'0'"]),
        (["--prompt", "moon", "--text-guidance", "nan"], ["--text-guidance", "'nan'"]),
        (["--prompt", "moon", "--layout-end", "2"], ["--layout-end", "[0, 1]"]),
        (["--prompt", "moon", "--num-images", "-1"], ["--num-images", "1 or more"]),
        (["--prompt", "moon", "--map", "hed"], ["--map", "softedge"]),
        (["--prompt", "moon", "--device", "abacus"], ["'abacus'", "cpu"]),
        (["--prompt", "moon", "--dtype", "int8"], ["'int8'", "fp32"]),
        (["--prompt", "moon", "--height", "67"], ["height is 67", "multiple of 8"]),
        (["--prompt", "moon", "--width", "3"], ["width is 3", "multiple of 8"]),
        (["--prompt", "moon", "--out", "x.gif"], ["x.gif", ".png"]),
        (["--prompt", "moon", "--out", "x"], ["suffix", ".png"]),
        (["--prompt", "moon", "--out", "."], ["folder"]),
        (["--prompt", "moon", "--model", "emoji-4096"], ["'emoji-4096'", ".safetensors"]),
        (["--prompt", "moon", "--model", "absent.safetensors"], ["absent.safetensors", "does not exist"]),
        (["--prompt", "moon", "--lora", "absent.safetensors"], ["absent.safetensors", "does not exist"]),
        (["--prompt", "moon", "--lora", "a.safetensors:strong"], ["--lora", "'strong'", "[-100, 100]"]),
        (["--context", "absent.png"], ["absent.png", "does not exist"]),
        (["--query", "absent.png"], ["absent.png", "does not exist"]),
        (["--query", "a/boat.png", "b/boat.png"], ["called boat", "rename one"]),
        (["--query", "a/boat.png", "b/Boat.png"], ["called boat and Boat", "one name on other systems", "rename one"]),
        (["--query", "a/caf\u00e9.png", "b/cafe\u0301.png"], ["one name on other systems"]),
        (["--prompt", "-fox"], ["--prompt", "--prompt=-fox"]),
        (["--context", "-a.png", "--prompt", "moon"], ["--context=-a.png"]),
        (["--prompt"], ["--prompt: expected one argument (see"]),
        (["--prompt", "moon", "--context-weights", "1e38"], ["--context-weights", "[0, 1000]"]),
        (["--prompt", "moon", "--text-guidance", "1e38"], ["--text-guidance", "[-100, 100]"]),
        (["--no-such-option"], ["--out"]),
    ],
)
def test_wrong_arguments(run, no_sampling, tmp_path, words, names):
    if "--out" not in words and "--no-such-option" not in words:
        words = [*words, "--out", "x.png"]
    code, out, err = run(*words)
    assert (code, out) == (2, "") and one_error_line(err), err
    for name in names:
        assert name in err
    assert files(tmp_path) == []


@pytest.mark.parametrize("option", ["--context", "--query"])
def test_an_input_is_not_replaced(run, no_sampling, pictures, tmp_path, option):
    original = (pictures / "a.png").read_bytes()
    (tmp_path / "mine.png").write_bytes(original)
    (tmp_path / "mine-1.png").symlink_to("mine.png")
    for out in (["mine.png"], ["./mine.png", "--grid"], ["mine.png", "--num-images", 2], [tmp_path / "mine.png"]):
        code, _, err = run(option, "mine.png", "--out", *out)
        assert code == 2 and one_error_line(err) and "is an input and would be replaced" in err, err
    assert (tmp_path / "mine.png").read_bytes() == original and files(tmp_path) == ["mine-1.png", "mine.png"]


def test_half_of_a_character(run, tmp_path):
    code, _, err = run("--prompt", "moon \udcff", "--out", "x.png")
    assert code == 2 and one_error_line(err) and r"'\udcff' at place 5" in err
    assert files(tmp_path) == []


@pytest.mark.parametrize("option", ["--context", "--query"])
@pytest.mark.parametrize("kind", ["empty", "text", "truncated", "folder"])
def test_files_that_are_no_images(run, no_sampling, pictures, tmp_path, option, kind):
    bad = tmp_path / "bad.png"
    whole = (pictures / "a.png").read_bytes()
    if kind == "folder":
        bad.mkdir()
    else:
        bad.write_bytes({"empty": b"", "text": b"hello", "truncated": whole[: len(whole) // 2]}[kind])
    before = files(tmp_path)
    code, _, err = run(option, bad, "--out", "x.png")
    assert code == 2 and one_error_line(err) and "bad.png" in err
    assert files(tmp_path) == before


def change(path, tensors=None, config=None):
    """Rewrite a checkpoint with the safetensors library alone."""
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    del metadata["context_diffusion.crc32"]
    weights = load_file(path)
    if tensors:
        tensors(weights)
    if config:
        settings = json.loads(metadata["context_diffusion.config"])
        config(settings)
        metadata["context_diffusion.config"] = json.dumps(settings)
    save_file(weights, path, metadata=metadata)


BIAS = "projector.linear.bias"


DAMAGES = {
    "empty": (lambda path: path.write_bytes(b""), "empty"),
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[:-1000]), "bad.safetensors"),
    "cut in the header": (lambda path: path.write_bytes(path.read_bytes()[:500]), "bad.safetensors"),
    "pickle": (lambda path: path.write_bytes(pickle.dumps({"weight": [1.0]})), "pickle"),
    "torch pickle": (lambda path: torch.save({"weight": torch.ones(1)}, path), "pickle"),
    "another origin": (lambda path: save_file({"weight": torch.ones(1)}, path), "Context Diffusion"),
    "another version": (lambda path: change(path, config=lambda c: c.update(format_version=99)), "99"),
    "missing key": (lambda path: change(path, lambda t: t.pop(BIAS)), BIAS),
    "extra key": (lambda path: change(path, lambda t: t.update({"unet.extra": torch.ones(1)})), "unet.extra"),
    "wrong shape": (lambda path: change(path, lambda t: t.update({BIAS: torch.ones(3)})), BIAS),
    "NaN": (lambda path: change(path, lambda t: t[BIAS].fill_(float("nan"))), BIAS),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_files_that_are_no_checkpoints(run, checkpoint, tmp_path, damage):
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(checkpoint.read_bytes())
    spoil, named = DAMAGES[damage]
    spoil(bad)
    code, out, err = run("--model", bad, "--prompt", "moon", "--out", "x.png")
    assert (code, out) == (2, "") and one_error_line(err), err
    assert "bad.safetensors" in err and named in err
    assert files(tmp_path) == ["bad.safetensors"]


@pytest.mark.parametrize("out", ["file/x.png", "file/deeper/x.png"])
def test_output_folder_is_a_file(run, no_sampling, tmp_path, out):
    (tmp_path / "file").write_text("in the way")
    code, _, err = run("--prompt", "moon", "--out", out)
    assert code == 2 and one_error_line(err) and "file" in err
    assert files(tmp_path) == ["file"]


@pytest.mark.skipif(sys.platform != "linux", reason="/proc takes no files, even from root")
def test_output_folder_takes_no_files(run, no_sampling):
    code, _, err = run("--prompt", "moon", "--out", "/proc/x.png")
    assert code == 2 and one_error_line(err) and "/proc" in err


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_read_only_output_folder(run, no_sampling, tmp_path):
    (tmp_path / "closed").mkdir(mode=0o555)
    code, _, err = run("--prompt", "moon", "--out", "closed/x.png")
    assert code == 2 and one_error_line(err) and "closed" in err


def test_missing_output_folder_is_made(run, tmp_path):
    code, _, err = run("--prompt", "moon", "--out", "new/deep/x.png")
    assert (code, err) == (0, "") and files(tmp_path) == ["new/deep/x.png"]


def test_disk_that_fills_while_writing(run, tmp_path, monkeypatch):
    def full(self, path, **options):
        Path(path).write_bytes(b"half of an image")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    (tmp_path / "x.png").write_bytes(b"what was here before")
    monkeypatch.setattr(Image.Image, "save", full)
    code, _, err = run("--prompt", "moon", "--out", "x.png")
    assert code == 2 and one_error_line(err) and "full" in err and "x.png" in err
    assert files(tmp_path) == ["x.png"]
    assert (tmp_path / "x.png").read_bytes() == b"what was here before"


@pytest.mark.parametrize(
    "failure, code",
    [
        (MemoryError(), 1),
        (RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB.\nSee the manual"), 1),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"), 1),
        (OSError(errno.EIO, os.strerror(errno.EIO), "disk"), 1),
        (KeyboardInterrupt(), 130),
    ],
)
def test_failures_of_the_machine(run, tmp_path, monkeypatch, failure, code):
    def fail(*arguments):
        raise failure

    monkeypatch.setattr(generate, "_sample", fail)
    got, out, err = run("--prompt", "moon", "--out", "x.png")
    assert (got, out) == (code, "") and one_error_line(err), err
    assert files(tmp_path) == []


def test_a_bug_is_not_hidden(run, monkeypatch):
    def fail(*arguments):
        raise RuntimeError("a mistake of ours")

    monkeypatch.setattr(generate, "_sample", fail)
    with pytest.raises(RuntimeError, match="a mistake of ours"):
        run("--prompt", "moon", "--out", "x.png")
