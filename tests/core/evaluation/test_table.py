"""`evaluate table` from checkpoints to tables and figures, on a data set, models and judges of toy size."""

import hashlib
import json
import math

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from context_diffusion.checkpoint.write import save_checkpoint
from context_diffusion.cli import build_parser
from context_diffusion.evaluation.table import select
from context_diffusion.features.networks import SqueezeNetFeatures

from ..test_package import commands
from ..tiny import tiny_model
from ..tiny_data import write_tiny_data
from .stand_ins import toy_squeezenet


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Data, three checkpoints and SqueezeNet's weights."""
    folder = tmp_path_factory.mktemp("table")
    write_tiny_data(folder / "data")
    for seed, name in enumerate(("ours", "theirs", "others")):
        save_checkpoint(tiny_model(seed, prediction_type="flow"), folder / f"{name}.safetensors")
    save_file(toy_squeezenet().state_dict(), folder / "squeezenet.safetensors")
    return folder


@pytest.fixture
def table(evaluate, folder, tmp_path):
    """Gives a function that runs the command with some options more, into `tmp_path / "out"`."""
    options = ["--model", folder / "ours.safetensors", "--data", folder / "data"]
    options += ["--squeezenet", folder / "squeezenet.safetensors", "--out", tmp_path / "out"]
    options += ["--steps", 1, "--workers", 1, "--batch-size", 4]
    return lambda *more: evaluate("table", *options, *more)


def contents(folder):
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_quick_mode_of_two_models_and_a_second_run_that_makes_nothing_anew(table, tmp_path, folder, caplog):
    against = ("--against", folder / "theirs.safetensors")
    assert table("--quick", "--count", 4, *against, "--plan") == 0
    assert "ours: " in caplog.text and "s an image: about" in caplog.text
    assert not (tmp_path / "out").exists(), "a plan makes nothing"
    assert table("--quick", "--count", 4, *against) == 0
    out = tmp_path / "out"
    report = json.loads((out / "table.json").read_text())
    assert report["protocol"]["models"] == ["ours", "theirs"] and report["protocol"]["main_k"] == 3
    for part, found in report["parts"].items():
        assert found["cases"] == 4
        for name, task in found["tasks"].items():
            rows = {(row["model"], row["setting"], row["k"]): row["figures"] for row in task["rows"]}
            wanted = {("", control, 0) for control in ("real", "copy_query", "copy_context")}
            for model in ("ours", "theirs"):
                wanted |= {(model, "vae", 0), (model, "p", 0), (model, "cp", 3), (model, "c", 3)}
                if name == "softedge":
                    wanted |= {(model, "cp", 1), (model, "c", 1)}
                if name != "sketch":
                    wanted.add((model, "shuffled", 3))
            assert set(rows) == wanted, (part, name)
            for key, figures in rows.items():
                for figure, triple in figures.items():
                    assert math.isfinite(triple[0]), (key, figure)
                    assert ("frechet" in figure) == (triple[1] is None), (key, figure)
                    if triple[1] is not None:
                        assert triple[1] <= triple[2]
                assert ("style_accuracy" in figures) == (name != "to-softedge")
                assert ("rmse" in figures) == (name != "sketch" and key[1] != "real")
            comparisons = {(row["model"], row["name"]): row["value"][0] for row in task["comparisons"]}
            ratio = comparisons["ours / theirs", "kid_EffNetLite0 c, k = 3"]
            kid = {model: rows[model, "c", 3]["kid_EffNetLite0"][0] for model in ("ours", "theirs")}
            assert ratio == pytest.approx(kid["ours"] / kid["theirs"])
            assert 0 <= comparisons["ours against theirs", "win rate c, k = 3"] <= 1
    assert set(report["parts"]["seen"]["tasks"]) == {"softedge", "to-softedge", "sketch"}
    text = (out / "table.md").read_text()
    assert "| soft edge -> image | ours wins over theirs | share |" in text and "Frechet-EffNetLite0" in text
    names = {path.name for path in out.glob("*.png")}
    assert {"curve-softedge-kid_EffNetLite0.png", "bars-unseen-rmse.png", "grid-seen-sketch.png"} <= names
    with Image.open(out / "grid-seen-softedge.png") as grid:
        # Query, three context images, truth, three settings of each model; a row for each of three styles.
        assert grid.size[0] == 11 * (64 + 4) + 4 and grid.size[1] > 3 * (64 + 4)

    lost = next((out / "images").glob("ours-*/seen-softedge-c-k1-s0/*.safetensors"))
    before = contents(out)
    lost.unlink()
    assert table("--quick", "--count", 4, *against) == 0
    again = contents(out)
    place = str(lost.relative_to(out))
    assert again[place][1] == before[place][1]
    for name, (time, data) in before.items():
        assert again[name][1] == data, name
        if name.startswith(("images", "measured")) and name != place:
            assert again[name][0] == time, name


def test_filters_and_another_run_in_the_same_folder(table, tmp_path, capsys):
    filters = ("--tasks", "to-depth", "--settings", "c", "p", "--k", 2, "--seeds", 2, "--parts", "unseen")
    assert table(*filters, "--count", 2, "--quick") == 0
    report = json.loads((tmp_path / "out" / "table.json").read_text())
    assert list(report["parts"]) == ["unseen"] and list(report["parts"]["unseen"]["tasks"]) == ["to-depth"]
    made = {path.parent.name for path in (tmp_path / "out" / "images").rglob("*.safetensors")}
    assert made == {f"unseen-to-depth-{setting}-s{seed}" for setting in ("c-k2", "p-k0") for seed in (0, 1)} | {
        "unseen-depth-vae-k0-s0"
    }
    for name, value in (("guidance", 2), ("sampler", "euler"), ("precision", "bf16_matmul"), ("batch-size", 2)):
        assert table(*filters, "--count", 2, "--quick", f"--{name}", value) == 2
        assert f"holds results of another run ({name.replace('-', '_')} differ)" in capsys.readouterr().err
    # The images say so too, where nothing was measured yet; and what was not measured is not claimed by the attempt.
    assert table(*filters, "--count", 2, "--guidance", 2) == 2
    assert "holds results of another run (fingerprint differ)" in capsys.readouterr().err
    assert not (tmp_path / "out" / "measured" / "full").exists()


FEW = ("--quick", "--count", 2, "--tasks", "to-depth", "--settings", "c", "--k", 1, "--parts", "seen")


@pytest.mark.parametrize("first", [(), ("--shard", "0/2")])
def test_another_model_sampled_otherwise_is_refused_before_any_of_its_images(table, folder, tmp_path, capsys, first):
    """Also after a shard, which measures nothing yet."""
    assert table(*FEW, *first) == 0
    out, theirs = tmp_path / "out", ("--model", folder / "theirs.safetensors")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        save_file(SqueezeNetFeatures().state_dict(), tmp_path / "squeezenet.safetensors")
    before = contents(out)
    others = [("steps", 2), ("sampler", "euler"), ("guidance", 2), ("precision", "bf16_matmul")]
    for name, value in (*others, ("squeezenet", tmp_path / "squeezenet.safetensors")):
        for shard in ((), ("--shard", "1/2")):
            assert table(*FEW, *theirs, f"--{name}", value, *shard) == 2
            assert f"holds results of another run ({name} differ)" in capsys.readouterr().err
    assert table(*FEW, *theirs, "--steps", 2, "--plan") == 0
    assert contents(out) == before
    assert table(*FEW, *theirs) == 0


def test_folders_say_what_those_of_earlier_releases_say(table, folder, tmp_path):
    """Word for word: else tables that took hours to make would count no more."""
    assert table(*FEW) == 0
    digests = {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest()[:16]
        for name in ("ours.safetensors", "squeezenet.safetensors", "data/index.json")
    }
    model, data = digests["ours.safetensors"], digests["data/index.json"]
    held = {
        str(path.parent.relative_to(tmp_path / "out")): json.loads(path.read_text())
        for path in (tmp_path / "out").rglob("run.json")
    }
    assert held == {
        f"images/ours-{model[:8]}": {
            "fingerprint": f"model {model}, 1 steps, guidance 3, fp32, lcm",
            "data": data,
            "version": 1,
            "batch_size": 4,
        },
        "measured/quick": {
            "squeezenet": digests["squeezenet.safetensors"],
            "classifier_images": 150,
            "version": 1,
            "steps": 1,
            "sampler": "lcm",
            "guidance": 3.0,
            "precision": "fp32",
            "data": data,
        },
    }


def test_a_model_without_all_parts_is_one_clear_line(table, folder, tmp_path, capsys):
    model = tiny_model(7, prediction_type="flow")
    model.vae = model.text_encoder = model.tokenizer = None
    bare = tmp_path / "bare.safetensors"
    save_checkpoint(model, bare)
    for flag in ("--model", "--against"):
        assert table(*FEW, flag, bare, "--plan") == 2
        found = capsys.readouterr().err
        assert f"{bare} has no VAE, no text encoder, no tokenizer: " in found and f"give {flag} a checkpoint" in found
    assert table(*FEW, "--model", bare) == 2
    assert not (tmp_path / "out").exists()


def test_several_models_are_one_row_each_and_each_is_compared_with_the_first(table, tmp_path, folder):
    others = [folder / "theirs.safetensors", folder / "others.safetensors"]
    filters = ("--tasks", "softedge", "to-depth", "--settings", "cp", "c", "shuffled", "--k", 3, "--parts", "seen")
    assert table("--quick", "--count", 4, *filters, "--against", *others) == 0
    out = tmp_path / "out"
    task = json.loads((out / "table.json").read_text())["parts"]["seen"]["tasks"]["softedge"]
    rows = {(row["model"], row["setting"]): row["figures"] for row in task["rows"]}
    compared = {(row["model"], row["name"]): row["value"] for row in task["comparisons"]}
    text = (out / "table.md").read_text()
    table_of_models = text.partition("### soft edge -> image, one row a model")[2].partition("###")[0].splitlines()
    heads = [cell.strip() for cell in table_of_models[2].split("|")[1:-1]]
    found = {}
    for line in table_of_models[4:7]:
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        found[cells[0]] = dict(zip(heads, cells, strict=True))
    assert list(found) == ["ours", "theirs", "others"]
    for model, cells in found.items():
        kid = rows[model, "c"]["kid_EffNetLite0"][0]
        assert float(cells["KID-EffNetLite0 C"].split()[0]) == pytest.approx(kid, abs=6e-4)
        ratio = compared[model, "rmse c / shuffled"][0]
        assert float(cells["RMSE C / shuffled"].split()[0]) == pytest.approx(ratio, abs=6e-4)
        if model == "ours":
            assert cells["ours wins C"] == ""
            continue
        wins = compared[f"ours against {model}", "win rate c, k = 3"][0]
        assert float(cells["ours wins C"].split()[0]) == pytest.approx(wins, abs=6e-4)
        relative = compared[f"ours / {model}", "kid_EffNetLite0 c, k = 3"][0]
        assert relative == pytest.approx(rows["ours", "c"]["kid_EffNetLite0"][0] / kid)
    # Maps have no style accuracy: no empty column.
    assert "style accuracy" not in text.partition("image -> depth, one row a model")[2].partition("###")[0]


def test_two_others_that_are_the_same_are_refused(table, folder, tmp_path, capsys):
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes((folder / "theirs.safetensors").read_bytes())
    assert table("--quick", "--count", 2, "--against", folder / "theirs.safetensors", copy) == 2
    assert f"--against {folder / 'theirs.safetensors'} and --against {copy} hold the same" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--tasks", "paint"), "--tasks names 'paint'"),
        (("--settings", "cx"), "--settings names 'cx'"),
        (("--k", 0), "--k is 0"),
        (("--k", 5, "--count", 4), "this data set has 4 context images"),
        (("--count", 1), "--count is 1"),
        (("--count", 99), "--count is 99"),
        (("--steps", 0), "argument --steps: got '0', expected a whole number, 1 or more"),
        (("--shard", "2/2"), "argument --shard: got '2/2', expected I/N"),
    ],
)
def test_options_out_of_range_are_one_clear_line(table, tmp_path, capsys, options, message):
    assert table(*options) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_model_against_itself_is_refused(table, folder, capsys):
    assert table("--quick", "--count", 2, "--against", folder / "ours.safetensors") == 2
    assert "hold the same model" in capsys.readouterr().err


def test_commands_of_the_documentation_are_understood():
    found = [*commands("docs/evaluation.md"), *commands("docs/results.md")]
    tables = [words for words in found if words[:2] == ["evaluate", "table"]]
    assert len(tables) >= 12
    for words in found:
        try:
            options = build_parser().parse_args(words)
        except SystemExit as leaving:
            raise AssertionError(f"context-diffusion {' '.join(words)}") from leaving
        if words in tables:
            select(options)
