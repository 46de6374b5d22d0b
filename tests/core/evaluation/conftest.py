"""The command line over a data set, models and judges of toy size."""

import pytest
import torch

from context_diffusion.cli import main
from context_diffusion.data.library import EmojiLibrary
from context_diffusion.features import networks

from ..tiny_data import write_tiny_data
from .stand_ins import toy_efficientnet


@pytest.fixture(scope="session")
def library(tmp_path_factory):
    """The tiny data set."""
    return EmojiLibrary(write_tiny_data(tmp_path_factory.mktemp("data")))


@pytest.fixture
def evaluate(monkeypatch):
    """Gives a function that runs `evaluate NAME ...` on one thread and returns its exit code."""
    monkeypatch.setattr(networks, "EfficientNetLite0Features", toy_efficientnet)
    monkeypatch.setattr(networks.SqueezeNetFeatures, "maps", lambda self, images: self(images)[-1], raising=False)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield lambda *words: main(["evaluate", *map(str, words)])
    torch.set_num_threads(threads)
