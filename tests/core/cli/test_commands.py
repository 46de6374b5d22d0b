"""The other commands, help, and the program as a process."""

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import save_file

from context_diffusion.cli import main

from ..tiny import tiny_model
from .words import one_error_line

ROOT = Path(__file__).parents[3]


def test_missing_extra_names_what_to_install(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("context_diffusion.cli.data.find_spec", lambda name: None)
    assert main(["data", "emoji", "--out", str(tmp_path / "data")]) == 2
    err = capsys.readouterr().err
    assert one_error_line(err) and "context-diffusion[train]" in err
    assert not (tmp_path / "data").exists()


def test_data_emoji_takes_a_limit(monkeypatch, capsys, tmp_path):
    pytest.importorskip("resvg_py")
    asked = []

    def build(out, size, workers, quiet=None, limit=None):
        asked.append((out, size, limit))
        return {"size": size, "emoji": {"a": {"heldout": True}}, "styles": {"one": {"images": 1}}}

    monkeypatch.setattr("context_diffusion.data.sources.emoji.build_emoji", build)
    words = ["data", "emoji", "--out", str(tmp_path)]
    assert main([*words, "--limit", "5"]) == 0 and main(words) == 0
    assert asked == [(tmp_path, 128, 5), (tmp_path, 128, None)]
    capsys.readouterr()
    assert main([*words, "--limit", "0"]) == 2
    assert "--limit" in capsys.readouterr().err and len(asked) == 2


def test_data_folder_counts_what_it_leaves_out(capsys, tmp_path):
    pytest.importorskip("resvg_py")
    folder = tmp_path / "mine" / "ink"
    folder.mkdir(parents=True)
    for number in range(10):
        Image.linear_gradient("L").point(lambda value, number=number: value // (number + 1)).save(
            folder / f"{number}.png"
        )
    (folder / "10.png").write_bytes(b"junk")
    words = ["data", "folder", "--images", str(tmp_path / "mine"), "--out", str(tmp_path / "data"), "--size", "16"]
    assert main([*words, "--heldout", "0.2"]) == 0
    said = capsys.readouterr().out
    assert "10 images of 10 names (2 held out) in 1 styles, 16 pixels; 1 left out: 1 unreadable" in said
    assert main([*words, "--heldout", "0.5"]) == 2, "five are too few to train on"
    assert one_error_line(capsys.readouterr().err)
    assert main([*words, "--heldout", "1"]) == 2
    assert "--heldout" in capsys.readouterr().err


def test_squeezenet_weights_are_fetched_once(monkeypatch, capsys, tmp_path):

    from context_diffusion.features.networks import SqueezeNetFeatures

    fetched = []

    def fetch(out):
        fetched.append(out)
        save_file(SqueezeNetFeatures().state_dict(), out)

    monkeypatch.setattr("context_diffusion.features.weights.fetch_feature_weights", fetch)
    out = tmp_path / "squeezenet.safetensors"
    assert main(["data", "squeezenet", "--out", str(out)]) == 0
    assert main(["data", "squeezenet", "--out", str(out)]) == 0
    assert fetched == [out]
    out.write_bytes(b"something else")
    assert main(["data", "squeezenet", "--out", str(out)]) == 2
    assert one_error_line(capsys.readouterr().err)


def test_info_describes_a_model(checkpoint, capsys):
    assert main(["info", str(checkpoint)]) == 0
    text = capsys.readouterr().out
    model = tiny_model()
    for part in ("unet", "projector", "layout_encoder", "vae", "text_encoder", "image_encoder"):
        count = sum(parameter.numel() for parameter in getattr(model, part).parameters())
        assert f"{part} {count:,}" in " ".join(text.split()), part
    for fact in ("tiny", "CC0-1.0", "64 x 64", "540 tokens", "5 tokens", "flow"):
        assert fact in text
    assert f"{checkpoint.stat().st_size / 1e6:.1f} MB" in text


def test_info_lists_models_and_examples(capsys):
    assert main(["info"]) == 0
    text = capsys.readouterr().out
    assert "moon-camp" in text and "Full moon over our camp, East Greenland" in text


def test_info_on_a_wrong_file(tmp_path, capsys):
    (tmp_path / "x.safetensors").write_bytes(b"")
    assert main(["info", str(tmp_path / "x.safetensors")]) == 2
    assert one_error_line(capsys.readouterr().err)


@pytest.mark.parametrize(
    "words", [[], ["generate"], ["info"], ["train"], ["data"], ["data", "emoji"], ["data", "squeezenet"], ["evaluate"]]
)
def test_help(words, capsys):
    assert main([*words, "--help"]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("usage: context-diffusion") and captured.err == ""


def test_no_command_and_unknown_command(capsys):
    for words in ([], ["paint"]):
        assert main(words) == 2
        err = capsys.readouterr().err
        assert one_error_line(err) and "--help" in err


def test_as_a_program():
    """Through a real process: exit code, one line, no traceback, and nothing on stdout."""
    command = [sys.executable, "-m", "context_diffusion", "generate", "--out", "x.png"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (2, "") and one_error_line(result.stderr)
