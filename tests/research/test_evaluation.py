"""`evaluate heldout` of the Prompt Diffusion baseline."""

import json

from context_diffusion.checkpoint.write import save_checkpoint

from ..core.evaluation.conftest import evaluate  # noqa: F401, a fixture
from ..core.evaluation.test_heldout import COUNTS, heldout, write_inputs  # noqa: F401, a fixture
from .tiny_variants import tiny_variant


def test_the_baseline_is_measured(heldout, tmp_path):  # noqa: F811
    write_inputs(tmp_path)
    save_checkpoint(tiny_variant("prompt_diffusion"), tmp_path / "model.safetensors")
    assert heldout("--seeds", 1, "--workers", 1) == 0
    report = json.loads((tmp_path / "out" / "heldout.json").read_text())
    assert set(report["parts"]) == set(COUNTS)
    # It has no image encoder to ask.
    assert "probes" not in report


def test_the_baseline_lacks_what_it_lacks_and_no_image_encoder(heldout, tmp_path, capsys):  # noqa: F811
    write_inputs(tmp_path)
    model = tiny_variant("prompt_diffusion")
    model.vae = None
    save_checkpoint(model, tmp_path / "model.safetensors")
    assert heldout() == 2
    assert f"{tmp_path / 'model.safetensors'} has no VAE: evaluation needs a whole model" in capsys.readouterr().err
