"""The configs of the ablations and the baseline: what is compared differs in one line; and their command."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from context_diffusion.training.config import load_config

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "research" / "configs"

# What two runs of one budget, or of one model on two budgets, may differ in.
NAMES = {"info"}
START = {"pretrained", "pool", "pool_seed"}
BUDGET = {"seed", "steps", "precision", "processes", "ema_decay", "save_every"}


def differing(first: dict, second: dict) -> set[str]:
    return {name for name in {*first, *second} if first.get(name) != second.get(name)}


def run_values(config) -> dict:
    return {key: value for key, value in vars(config).items() if key not in ("out", "settings")}


@pytest.mark.parametrize(
    ("folder", "others", "own"), [("ablations", 8, {"context_dropout"}), ("prompt-diffusion-128", 2, set())]
)
def test_what_is_compared_has_one_budget_and_differs_in_one_line(folder, others, own):
    """But for the baseline with the dropouts of its own authors, which is three lines more."""
    bundled = load_config(ROOT / "configs" / "emoji-only.toml")
    default = load_config(CONFIGS / folder / "default.toml")
    base = load_config(CONFIGS / "text-to-image-128" / "diffusion.toml")
    assert differing(run_values(default), run_values(bundled)) <= BUDGET
    assert differing(default.settings, bundled.settings) == NAMES | START | own
    # All begin with the text to image model, whose episodes they draw from in an order of their own.
    assert default.settings["pretrained"] == f"{base.out}/{base.settings['info']['name']}.safetensors"
    assert default.settings["pool"] == f"{base.out}/pool"
    assert default.settings["pool_seed"] == base.seed != default.seed
    compared = {path.stem: load_config(path) for path in (CONFIGS / folder).glob("*.toml") if path.stem != "default"}
    assert len(compared) == others
    for name, config in compared.items():
        assert run_values(config) == run_values(default), name
        changed = differing(config.settings, default.settings) - NAMES
        if name == "own-dropouts":
            assert changed == {"baseline", "text_dropout", "context_dropout", "query_dropout"}
        else:
            assert len(changed) == 1, name
    every = [base, default, *compared.values()]
    assert len({(config.out, config.settings["info"]["name"]) for config in every}) == len(every)


def test_the_text_to_image_model_is_the_bundled_ones_without_layout_and_context():
    bundled = load_config(ROOT / "configs" / "emoji-only.toml")
    base = load_config(CONFIGS / "text-to-image-128" / "diffusion.toml")
    assert differing(run_values(base), run_values(bundled)) <= BUDGET
    assert differing(base.settings, bundled.settings) == NAMES | {"layout", "text_dropout", "context_dropout"}
    assert (base.settings["layout"], base.settings["context_dropout"]) == ("none", 1.0)


def test_every_config_of_research_is_in_order():
    for path in CONFIGS.rglob("*.toml"):
        load_config(path)


@pytest.mark.parametrize("where", ["configs", "research/configs"])
def test_the_command_trains_as_a_config_of_research_says(where, tmp_path):
    """One that is named as it lay before research/ had a folder is found; what is missing is said by the process."""
    command = [sys.executable, "-m", "research", "train", f"{where}/ablations/black-null.toml"]
    done = subprocess.run(
        [*command, "--data", str(tmp_path / "absent"), "--out", str(tmp_path / "out"), "--steps", "1"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2 and "absent" in done.stderr and len(done.stderr.strip().splitlines()) == 1
