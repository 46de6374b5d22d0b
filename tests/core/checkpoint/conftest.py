"""A tiny model's checkpoint, and a copy of it for each test that damages one."""

import pytest

from context_diffusion.checkpoint.write import save_checkpoint

from ..tiny import tiny_model


@pytest.fixture(scope="module")
def model():
    return tiny_model(prediction_type="flow")


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory):
    return save_checkpoint(model, tmp_path_factory.mktemp("saved") / "tiny.safetensors")


@pytest.fixture
def file(saved, tmp_path):
    """A copy that a test may damage."""
    copy = tmp_path / "tiny.safetensors"
    copy.write_bytes(saved.read_bytes())
    return copy
