"""The command line on a tiny checkpoint."""

import numpy as np
import pytest
from PIL import Image

from context_diffusion.checkpoint.write import save_checkpoint
from context_diffusion.cli import generate, main

from ..tiny import tiny_model


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


@pytest.fixture(scope="module")
def pipe(checkpoint):
    """The pipeline that `generate` should be no different from."""
    from context_diffusion.sampling.pipeline import ContextDiffusionPipeline

    pipe = ContextDiffusionPipeline.from_single_file(checkpoint)
    pipe.set_progress_bar_config(disable=True)
    return pipe


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
