"""`context-diffusion generate`: what it writes."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from context_diffusion.checkpoint.lora import lora_names, save_lora
from context_diffusion.checkpoint.read import load_checkpoint
from context_diffusion.choices import FITS
from context_diffusion.cli import generate
from context_diffusion.images import load_image_as_tensor
from context_diffusion.maps import make_map

from ..tiny import IMAGE_SIZE
from .words import files, pixels

ROOT = Path(__file__).parents[3]


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


OPTIONS = {
    "map": (["--map", "softedge"], {"map_name": "softedge"}),
    "prompt": (["--prompt", "camping, line art"], {"prompt": "camping, line art"}),
    "negative": (["--negative-prompt", "tent"], {"negative_prompt": "tent"}),
    "strength": (["--layout-strength", "0.3"], {"layout_strength": 0.3}),
    "start": (["--layout-start", "0.5"], {"layout_start": 0.5}),
    "end": (["--layout-end", "0.5"], {"layout_end": 0.5}),
    "guidance": (
        ["--text-guidance", "4", "--context-guidance", "2"],
        {"text_guidance": 4.0, "context_guidance": 2.0},
    ),
    "weights": (["--context-weights", "1", "0.2"], {"context_weights": [1.0, 0.2]}),
    "aggregation": (["--aggregation", "sum"], {"aggregation": "sum"}),
    "size": (["--height", "48", "--width", "64"], {"height": 48, "width": 64}),
    "seed": (["--seed", "1"], {"generator": [1]}),
}


@pytest.mark.parametrize("option", OPTIONS)
def test_an_option_does_what_the_pipeline_does_with_it(run, pipe, pictures, tmp_path, option):
    """Against the pipeline called from Python, and the option is not without effect."""
    from context_diffusion.images import load_image_as_tensor

    words, arguments = OPTIONS[option]
    context = [pictures / "a.png", pictures / "c.png"]
    common = ["--context", *context, "--query", pictures / "b.png", "--map", "canny", "--prompt", "moon"]
    code, _, err = run(*common, *words, "--out", "with.png")
    assert (code, err) == (0, "")
    given = {"prompt": "moon", "map_name": "canny", "generator": [0], "height": IMAGE_SIZE, "width": IMAGE_SIZE}
    given.update(arguments)
    given["generator"] = [torch.Generator().manual_seed(seed) for seed in given["generator"]]
    image = pipe(
        context_images=[load_image_as_tensor(path) for path in context],
        query_image=load_image_as_tensor(pictures / "b.png", (given["height"], given["width"])),
        num_inference_steps=2,
        **given,
    ).images[0]
    with_it = pixels(tmp_path / "with.png")
    assert np.array_equal(with_it, np.asarray(image))
    run(*common, "--out", "without.png")
    assert not np.array_equal(with_it, pixels(tmp_path / "without.png"))


def test_loras_add_up(run, checkpoint, pictures, tmp_path):
    """The command's image under a LoRA is that of the pipeline that loaded it; half its strength twice is the same."""
    from context_diffusion.sampling.pipeline import ContextDiffusionPipeline

    change = torch.Generator().manual_seed(0)
    layers = {}
    for name, weight in lora_names(load_checkpoint(checkpoint)).items():
        if "attentions" in name:
            out, width = weight.flatten(1).shape
            layers[name] = torch.randn(out, 2, generator=change) / 8, torch.randn(2, width, generator=change)
    save_lora(tmp_path / "a:b.safetensors", layers, {})
    words = ("--context", pictures / "a.png", "--out")
    for name, more in (("plain", ()), ("once", ("a:b.safetensors:0.5",)), ("twice", ("a:b.safetensors:0.25",) * 2)):
        lora = ("--lora", *more) if more else ()
        assert run(*words, f"{name}.png", *lora)[0] == 0
    plain, once, twice = (load_image_as_tensor(tmp_path / f"{name}.png") for name in ("plain", "once", "twice"))
    assert (once - plain).abs().max() > 0.02 and (once - twice).abs().max() < 0.01
    pipe = ContextDiffusionPipeline.from_single_file(checkpoint).load_lora(tmp_path / "a:b.safetensors", 0.5)
    pipe.set_progress_bar_config(disable=True)
    generator, context = torch.Generator().manual_seed(0), [load_image_as_tensor(pictures / "a.png")]
    expected = pipe(context_images=context, num_inference_steps=2, generator=generator, output_type="pt").images[0]
    assert (once - expected).abs().max() < 0.01


@pytest.mark.parametrize("left_alone", ["--query", "--context"])
def test_another_fit_is_another_image(run, pictures, tmp_path, left_alone):
    """Each of the two kinds of images is made to fit: the other one is a square here."""
    wide = {"--query": "--context", "--context": "--query"}[left_alone]
    common = [left_alone, pictures / "a.png", wide, pictures / "c.png", "--map", "canny"]
    for fit in FITS:
        code, _, err = run(*common, "--fit", fit, "--out", f"{fit}.png")
        assert (code, err) == (0, "")
    images = [pixels(tmp_path / f"{fit}.png") for fit in FITS]
    assert all(np.abs(one - two).max() > 0 for one, two in zip(images, images[1:], strict=False))


def test_another_context_is_another_image(run, pictures, tmp_path):
    for name in "ac":
        run("--context", pictures / f"{name}.png", "--prompt", "moon", "--out", f"{name}.png")
    assert np.abs(pixels(tmp_path / "a.png") - pixels(tmp_path / "c.png")).max() > 0


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


def test_several_queries_each_get_their_own(run, pictures, tmp_path):
    """A set is completed in one go: the same as one command for each query."""
    words = ["--context", pictures / "a.png", "--map", "softedge", "--num-images", 2]
    code, out, err = run(*words, "--query", pictures / "b.png", pictures / "c.png", "--out", "set.png")
    names = ["set-b-1.png", "set-b-2.png", "set-c-1.png", "set-c-2.png"]
    assert (code, err) == (0, "") and out.split() == files(tmp_path) == names
    run(*words, "--query", pictures / "c.png", "--out", "alone.png")
    for number in (1, 2):
        both = [pixels(tmp_path / f"{name}-{number}.png") for name in ("set-c", "alone")]
        assert np.abs(both[0] - both[1]).max() <= 1
    assert np.abs(pixels(tmp_path / "set-b-1.png") - both[0]).max() > 0


def test_the_grid_of_several_queries_has_a_line_for_each(run, pictures, tmp_path):
    queries = ["--query", pictures / "b.png", pictures / "c.png"]
    words = ["--context", pictures / "a.png", *queries, "--map", "canny"]
    run(*words, "--out", "set.png")
    code, _, err = run(*words, "--grid", "--out", "grid.png")
    assert (code, err) == (0, "")
    grid = pixels(tmp_path / "grid.png")
    # The context alone; query, map and output; the same again.
    assert 3 * IMAGE_SIZE < grid.shape[1] < 3.6 * IMAGE_SIZE and 3 * IMAGE_SIZE < grid.shape[0] < 4.5 * IMAGE_SIZE
    gap = (grid.shape[1] - 3 * IMAGE_SIZE) // 4
    line = grid.shape[0] // 3
    for number, name in ((2, "b"), (3, "c")):
        bottom, left = number * line - gap, 3 * gap + 2 * IMAGE_SIZE
        cell = grid[bottom - IMAGE_SIZE : bottom, left : left + IMAGE_SIZE]
        assert np.abs(cell - pixels(tmp_path / f"set-{name}.png")).max() <= 1, name


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


def test_map_of_the_grid_is_the_map_of_the_query(pictures):
    """What the grid shows is made from the image at the size the model gets."""
    from context_diffusion.cli.grid import inputs_and_outputs
    from context_diffusion.images import load_image_as_tensor

    query = load_image_as_tensor(pictures / "b.png", IMAGE_SIZE)
    grid = inputs_and_outputs([query], "canny", [], [torch.zeros(3, IMAGE_SIZE, IMAGE_SIZE)])
    expected = make_map(query, "canny")[0]
    windows = grid.unfold(1, IMAGE_SIZE, 1).unfold(2, IMAGE_SIZE, 1)
    assert (windows - expected[:, None, None]).abs().amax((0, 3, 4)).min() < 1e-6


def test_grid_of_many_context_images():
    from context_diffusion.cli.grid import MOST_COLUMNS, inputs_and_outputs

    context = [torch.rand(3, 20, 30) for _ in range(19)]
    grid = inputs_and_outputs([], "none", context, [torch.zeros(3, 32, 32)])
    # 20 cells: three lines of eight columns.
    assert MOST_COLUMNS * 32 < grid.shape[2] < MOST_COLUMNS * 40
    assert 3 * 32 < grid.shape[1] < 3 * 60


@pytest.mark.skipif(sys.platform != "linux", reason="other file systems refuse such a name")
def test_a_name_that_is_no_text_is_printed(run, tmp_path):
    code, out, err = run("--prompt", "moon", "--out", os.fsdecode(b"\xff.png"), steps=1)
    assert (code, out, err) == (0, "\\udcff.png\n", "") and os.listdir(os.fsencode(tmp_path)) == [b"\xff.png"]


@pytest.mark.parametrize(
    "words, variable, small, expected",
    [
        ([], None, True, [1]),
        ([], None, False, []),
        ([], "2", True, []),
        (["--threads", 3], None, True, [3]),
        (["--threads", 3], "2", False, [3]),
    ],
)
def test_threads(run, monkeypatch, words, variable, small, expected):
    """One for a small model; what the user says comes first, the option before the variable."""
    asked = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if variable:
        monkeypatch.setenv("OMP_NUM_THREADS", variable)
    if not small:
        monkeypatch.setattr(generate, "_SMALL_UNET", 1000)
    code, _, err = run("--prompt", "moon", *words, "--out", "x.png", steps=1)
    assert (code, err) == (0, "") and asked == expected
