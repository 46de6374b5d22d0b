"""`evaluate heldout` from a checkpoint to its three files, on a data set, a model and judges of toy size."""

import json
import math
import sys

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from context_diffusion.checkpoint.write import save_checkpoint
from context_diffusion.evaluation.cases.heldout import PART_SETTINGS
from context_diffusion.evaluation.cases.tasks import SETTING_NAMES
from context_diffusion.images import image_grid

from ..tiny import tiny_model
from ..tiny_data import SIZE, write_tiny_data
from .stand_ins import toy_squeezenet

# Of the picture's columns.
LABELS = ("query", "context", "context", "context", "truth", "C+P", "C", "P")
COUNTS = {"seen": 6, "unseen": 2, "transforms": 3}
SEEDS = 2


@pytest.fixture
def heldout(evaluate, tmp_path):
    """Gives a function that runs the command with some options more; its figures go to `tmp_path / "out"`."""
    options = ["--model", tmp_path / "model.safetensors", "--data", tmp_path / "data", "--out", tmp_path / "out"]
    options += ["--squeezenet", tmp_path / "squeezenet.safetensors", "--seeds", SEEDS, "--steps", 2, "--batch-size", 4]
    for part, count in COUNTS.items():
        options += [f"--{part}", count]
    return lambda *more: evaluate("heldout", *options, *more)


def write_inputs(folder):
    write_tiny_data(folder / "data")
    save_checkpoint(tiny_model(prediction_type="flow"), folder / "model.safetensors")
    save_file(toy_squeezenet().state_dict(), folder / "squeezenet.safetensors")


def contents(folder):
    """Name -> (time of writing, bytes) of all files of a folder."""
    return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.iterdir() if path.is_file()}


def is_finite(triple):
    return len(triple) == 3 and all(map(math.isfinite, triple)) and triple[1] <= triple[2]


def test_a_run_in_two_shards_measures_and_a_lost_chunk_is_made_again(heldout, tmp_path):
    write_inputs(tmp_path)
    out = tmp_path / "out"
    assert heldout("--shard", "0/2") == 0
    first = contents(out / "images")
    assert first and not (out / "heldout.json").exists(), "one shard is not the whole"
    assert heldout("--shard", "1/2", "--workers", 1) == 0
    made = contents(out / "images")
    assert all(made[name] == first[name] for name in first)
    for part, count in COUNTS.items():
        for setting in (*PART_SETTINGS[part], "vae"):
            for seed in range(1 if setting == "vae" else SEEDS):
                files = sorted((out / "images").glob(f"{part}-{setting}-{seed}-*.safetensors"))
                assert [len(load_file(file)["images"]) for file in files] == ([4, 2] if count == 6 else [count])

    report = json.loads((out / "heldout.json").read_text())
    assert list(report["parts"]) == list(COUNTS)
    for part, found in report["parts"].items():
        assert found["cases"] == COUNTS[part]
        assert set(found["settings"]) == {"real", "vae", *PART_SETTINGS[part]}
        for setting, figures in found["settings"].items():
            assert all(map(is_finite, figures.values())), (part, setting, figures)
            assert ("style_accuracy" in figures) == (part != "transforms")
            assert ("psnr" in figures and "ssim" in figures) == (setting == "vae")
            assert ("rmse" in figures and "kid_EffNetLite0" in figures) == (setting != "real")
        settings = found["settings"]
        for pair in ("c/shuffled", "c/query_only") + (() if part == "transforms" else ("cp/c", "cp/p")):
            top, bottom = (settings[name]["rmse"][0] for name in pair.split("/"))
            assert found["ratios"][f"rmse {pair}"][0] == pytest.approx(top / bottom)
            assert is_finite(found["ratios"][f"rmse {pair}"])
    for label in ("style", "dominant_color"):
        assert all(is_finite(triple) for triple in report["probes"][label].values())

    text = (out / "heldout.md").read_text()
    assert text.count("\n## ") == len(COUNTS) + 1  # the last one is the probes
    for name in SETTING_NAMES.values():
        assert text.count(f"| {name} |") == (2 if name in ("C+P", "P") else 3), name
    cell = torch.zeros(3, SIZE, SIZE)
    # Three styles, one unseen style, and three transforms.
    expected = image_grid([[cell] * len(LABELS)] * 7, LABELS)
    with Image.open(out / "heldout-grid.png") as grid:
        assert grid.size == (expected.shape[2], expected.shape[1])

    lost = "seen-shuffled-1-00004.safetensors"
    (out / "images" / lost).unlink()
    before = contents(out)
    assert set(before) == {"heldout.json", "heldout.md", "heldout-grid.png"}
    # Two processes measure the same as one.
    assert heldout("--workers", 2) == 0
    again = contents(out / "images")
    assert again.pop(lost)[1] == made.pop(lost)[1]
    assert again == made, "only what was lost is made again"
    for name, (_, written) in contents(out).items():
        assert written == before[name][1], name


def test_precision_is_told_and_images_of_two_are_not_mixed(heldout, tmp_path, capsys):
    write_inputs(tmp_path)
    out = tmp_path / "out"
    assert heldout("--precision", "bf16_matmul", "--seeds", 1) == 0
    fast = json.loads((out / "heldout.json").read_text())
    assert fast["protocol"]["precision"] == "bf16_matmul"
    assert heldout("--seeds", 1) == 2
    assert "another run" in capsys.readouterr().err
    assert heldout("--seeds", 1, "--out", tmp_path / "exact") == 0
    exact = json.loads((tmp_path / "exact" / "heldout.json").read_text())
    assert exact["protocol"]["precision"] == "fp32" and exact["protocol"]["sampler"] == "lcm"
    assert heldout("--seeds", 1, "--out", tmp_path / "exact", "--sampler", "euler") == 2
    assert "another run" in capsys.readouterr().err
    for setting, figures in exact["parts"]["seen"]["settings"].items():
        if "rmse" in figures:
            other = fast["parts"]["seen"]["settings"][setting]["rmse"][0]
            assert other == pytest.approx(figures["rmse"][0], rel=0.02) and other != figures["rmse"][0]


@pytest.mark.parametrize(
    ("lost", "message"),
    [
        (["vae"], "has no VAE: "),
        (["tokenizer"], "has no tokenizer: "),
        (["image_encoder"], "has no image encoder: "),
        # What `layout = "none"` trains: there is nothing that reads a query.
        (["layout_encoder"], "has no layout encoder: "),
        (["image_encoder", "text_encoder", "vae"], "has no VAE, no text encoder, no image encoder: "),
    ],
)
def test_a_model_without_all_parts_is_one_line(heldout, tmp_path, capsys, lost, message):
    write_inputs(tmp_path)
    model = tiny_model(prediction_type="flow")
    for part in lost:
        setattr(model, part, None)
    save_checkpoint(model, tmp_path / "model.safetensors")
    assert heldout() == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{tmp_path / 'model.safetensors'} {message}evaluation needs a whole model, give --model" in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--seeds", 0), "argument --seeds: got '0', expected a whole number, 1 or more"),
        (("--steps", -1), "argument --steps: got '-1', expected a whole number, 1 or more"),
        (("--batch-size", 0), "argument --batch-size: got '0', expected a whole number, 1 or more"),
        (("--workers", 0), "argument --workers: got '0', expected a whole number, 1 or more"),
        (("--unseen", 1), "--unseen is 1"),
        (("--seen", 0, "--unseen", 0, "--transforms", 0), "nothing is left"),
        (("--guidance", "nan"), "argument --guidance: got 'nan', expected a finite number"),
        (("--shard", "2/2"), "argument --shard: got '2/2', expected I/N"),
    ],
)
def test_options_out_of_range_are_one_line(heldout, tmp_path, capsys, options, message):
    (tmp_path / "model.safetensors").touch()
    assert heldout(*options) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not (tmp_path / "out").exists()


def test_missing_packages_are_found_before_any_image_is_made(heldout, tmp_path, capsys, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    (tmp_path / "model.safetensors").touch()
    assert heldout() == 2
    assert "context-diffusion[evaluate]" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
