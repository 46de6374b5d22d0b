"""The command line: what it writes, and every wrong input as one line with the right exit code."""

import errno
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from context_diffusion.checkpoint import save_checkpoint
from context_diffusion.cli import generate, main
from context_diffusion.images import FITS
from context_diffusion.maps import MAPS, make_map
from context_diffusion.visual_context import AGGREGATIONS

from .tiny import IMAGE_SIZE, tiny_model

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_checkpoint(tiny_model(prediction_type="flow"), tmp_path_factory.mktemp("model") / "tiny.safetensors")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Three images of different shapes."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for name, shape in (("a", (40, 40)), ("b", (64, 48)), ("c", (30, 90))):
        Image.fromarray(rng.integers(0, 255, (*shape, 3), dtype=np.uint8)).save(folder / f"{name}.png")
    return folder


@pytest.fixture
def run(checkpoint, tmp_path, monkeypatch, capsys):
    """Call `generate` in an empty folder; gives (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments, steps=2):
        words = ["generate", "--model", str(checkpoint), "--device", "cpu", "--steps", str(steps)]
        code = main([*words, *map(str, arguments)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture
def no_sampling(monkeypatch):
    """The model must not be touched."""

    def fail(*arguments):
        raise AssertionError("the model was asked for an image")

    monkeypatch.setattr(generate, "_sample", fail)


def pixels(path):
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def one_error_line(text):
    return text.startswith("error: ") and text.count("\n") == 1 and text.endswith("\n")


def files(folder):
    """Every file in a folder, the hidden ones too."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_choices_are_those_of_the_library():
    assert tuple(MAPS) == generate.MAP_NAMES
    assert tuple(FITS) == generate.FIT_NAMES
    assert tuple(AGGREGATIONS) == generate.AGGREGATION_NAMES


@pytest.mark.parametrize("left_out", ["context", "query", "prompt", "none of them"])
def test_each_input_may_be_left_out(run, pictures, tmp_path, left_out):
    given = {
        "context": ["--context", pictures / "a.png", pictures / "c.png", "--context-weights", 1, 0.5],
        "query": ["--query", pictures / "b.png", "--map", "canny"],
        "prompt": ["--prompt", "a yellow moon"],
    }
    given.pop(left_out, None)
    code, out, err = run(*(word for words in given.values() for word in words), "--out", "x.png")
    assert (code, out, err) == (0, "x.png\n", "")
    assert Image.open(tmp_path / "x.png").size == (IMAGE_SIZE, IMAGE_SIZE)


def test_several_images_are_numbered_and_each_has_its_own_seed(run, tmp_path):
    code, out, _ = run("--prompt", "moon", "--seed", 5, "--num-images", 3, "--out", "many.png")
    assert code == 0 and out.split() == ["many-1.png", "many-2.png", "many-3.png"]
    assert files(tmp_path) == ["many-1.png", "many-2.png", "many-3.png"]
    run("--prompt", "moon", "--seed", 6, "--out", "one.png")
    one = pixels(tmp_path / "one.png")
    assert np.abs(pixels(tmp_path / "many-2.png") - one).max() <= 1
    assert np.abs(pixels(tmp_path / "many-1.png") - one).max() > 20


def test_more_images_than_go_in_one_batch(run, tmp_path, monkeypatch):
    run("--prompt", "moon", "--num-images", 3, "--out", "a.png")
    monkeypatch.setattr(generate, "_AT_ONCE", 2)
    code, out, _ = run("--prompt", "moon", "--num-images", 3, "--out", "b.png")
    assert code == 0 and len(out.split()) == 3
    for number in (1, 2, 3):
        difference = pixels(tmp_path / f"a-{number}.png") - pixels(tmp_path / f"b-{number}.png")
        assert np.abs(difference).max() <= 1


def test_inputs_change_the_image(run, pictures, tmp_path):
    common = ["--context", pictures / "a.png", "--query", pictures / "b.png", "--prompt", "moon"]
    run(*common, "--out", "base.png")
    for name, words in {
        "context": ["--context", pictures / "c.png"],
        "fit": ["--query", pictures / "c.png", "--fit", "pad"],
        "map": ["--map", "softedge"],
        "prompt": ["--prompt", "camping, line art"],
        "negative": ["--negative-prompt", "tent"],
        "strength": ["--layout-strength", "0"],
        "end": ["--layout-end", "0.5"],
        "text": ["--text-guidance", "1"],
        "seed": ["--seed", "1"],
    }.items():
        code, _, err = run(*common, *words, "--out", f"{name}.png")
        assert code == 0, err
        assert np.abs(pixels(tmp_path / f"{name}.png") - pixels(tmp_path / "base.png")).max() > 0, name


def test_same_bytes_in_another_process(run, checkpoint, pictures, tmp_path):
    words = ["--context", str(pictures / "a.png"), "--prompt", "moon", "--seed", "3"]
    run(*words, "--out", "here.png")
    options = ["--model", str(checkpoint), "--device", "cpu", "--steps", "2"]
    command = [sys.executable, "-m", "context_diffusion", "generate", *options, *words, "--out"]
    result = subprocess.run(
        [*command, str(tmp_path / "there.png")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
    )
    # Off a terminal there is no progress bar, and no library says anything.
    assert (result.returncode, result.stderr) == (0, "")
    assert (tmp_path / "here.png").read_bytes() == (tmp_path / "there.png").read_bytes()


def test_grid_shows_inputs_and_outputs(run, pictures, tmp_path):
    words = [
        "--query",
        pictures / "b.png",
        "--map",
        "canny",
        "--context",
        pictures / "a.png",
        pictures / "c.png",
    ]
    code, out, _ = run(*words, "--num-images", 2, "--grid", "--out", "grid.png")
    assert code == 0 and files(tmp_path) == ["grid.png"]
    grid = pixels(tmp_path / "grid.png")
    # Query, map, two context images, two outputs: six cells in one line.
    assert 6 * IMAGE_SIZE < grid.shape[1] < 6.6 * IMAGE_SIZE
    assert IMAGE_SIZE < grid.shape[0] < 1.6 * IMAGE_SIZE
    run(*words, "--seed", 1, "--out", "second.png")
    second = pixels(tmp_path / "second.png")
    gap = (grid.shape[1] - 6 * IMAGE_SIZE) // 7
    left, bottom = gap * 6 + 5 * IMAGE_SIZE, grid.shape[0] - gap
    cell = grid[bottom - IMAGE_SIZE : bottom, left : left + IMAGE_SIZE]
    assert np.abs(cell - second).max() <= 1
    black = (grid[bottom - IMAGE_SIZE : bottom, 2 * gap + IMAGE_SIZE : 2 * (gap + IMAGE_SIZE)] == 0).mean()
    assert black > 0.5, "the second cell is the edge map"


def test_an_example_gives_what_is_left_out(run, pictures, tmp_path):
    from context_diffusion.pretrained.examples import load_examples

    example = load_examples()["moon-camp"]
    words = ["--context", *example.context, "--query", example.query, "--map", example.map]
    run(*words, "--prompt", example.prompt, "--out", "written-out.png")
    code, _, err = run("--example", "moon-camp", "--out", "example.png")
    assert (code, err) == (0, "")
    assert (tmp_path / "example.png").read_bytes() == (tmp_path / "written-out.png").read_bytes()
    run("--example", "moon-camp", "--prompt", "a red flag", "--out", "other.png")
    run(*words, "--prompt", "a red flag", "--out", "other-written-out.png")
    assert (tmp_path / "other.png").read_bytes() == (tmp_path / "other-written-out.png").read_bytes()
    assert (tmp_path / "other.png").read_bytes() != (tmp_path / "example.png").read_bytes()


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
        (["--context", "absent.png"], ["absent.png", "does not exist"]),
        (["--query", "absent.png"], ["absent.png", "does not exist"]),
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

    monkeypatch.setattr("context_diffusion.data.emoji.build_emoji", build)
    words = ["data", "emoji", "--out", str(tmp_path)]
    assert main([*words, "--limit", "5"]) == 0 and main(words) == 0
    assert asked == [(tmp_path, 128, 5), (tmp_path, 128, None)]
    capsys.readouterr()
    assert main([*words, "--limit", "0"]) == 2
    assert "--limit" in capsys.readouterr().err and len(asked) == 2


def test_squeezenet_weights_are_fetched_once(monkeypatch, capsys, tmp_path):
    from safetensors.torch import save_file

    from context_diffusion.features import SqueezeNetFeatures

    fetched = []

    def fetch(out):
        fetched.append(out)
        save_file(SqueezeNetFeatures().state_dict(), out)

    monkeypatch.setattr("context_diffusion.feature_weights.fetch_feature_weights", fetch)
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


def test_map_of_the_grid_is_the_map_of_the_query(pictures):
    """What the grid shows is made from the image at the size the model gets."""
    from context_diffusion.cli.grid import inputs_and_outputs
    from context_diffusion.images import load_image_as_tensor

    query = load_image_as_tensor(pictures / "b.png", IMAGE_SIZE)
    grid = inputs_and_outputs(query, "canny", [], [torch.zeros(3, IMAGE_SIZE, IMAGE_SIZE)])
    expected = make_map(query, "canny")[0]
    windows = grid.unfold(1, IMAGE_SIZE, 1).unfold(2, IMAGE_SIZE, 1)
    assert (windows - expected[:, None, None]).abs().amax((0, 3, 4)).min() < 1e-6


def test_grid_of_many_context_images():
    from context_diffusion.cli.grid import MOST_COLUMNS, inputs_and_outputs

    context = [torch.rand(3, 20, 30) for _ in range(19)]
    grid = inputs_and_outputs(None, "none", context, [torch.zeros(3, 32, 32)])
    # 20 cells: three lines of eight columns.
    assert MOST_COLUMNS * 32 < grid.shape[2] < MOST_COLUMNS * 40
    assert 3 * 32 < grid.shape[1] < 3 * 60
