"""Training configs: what is read, what is replaced, and every mistake as one clear error."""

import ast
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from context_diffusion.errors import ContextDiffusionError
from context_diffusion.training import settings as settings_module
from context_diffusion.training.config import RunConfig, load_config, read_table
from context_diffusion.training.settings import SETTINGS, DiffusionSettings, VAESettings, is_needed, table_fields

GOOD = """
[run]
stage = "vae"
data = "data"
out = "runs/vae"
steps = 10
batch_size = 4
learning_rate = 1

[vae]
crop = 64
[vae.weights]
l2 = 2.0
"""


@pytest.fixture
def write(tmp_path):
    def write(text):
        path = tmp_path / "stage.toml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def test_values_defaults_and_the_stages_own_table(write):
    config = load_config(write(GOOD))
    assert (config.stage, config.steps, config.batch_size, config.learning_rate) == ("vae", 10, 4, 1)
    assert (config.precision, config.processes, config.seed) == ("fp32", 1, 0)
    assert config.settings == {"crop": 64, "weights": {"l2": 2.0}}


def test_overrides_replace_and_none_leaves(write):
    config = load_config(write(GOOD), {"steps": 3, "out": "elsewhere", "seed": None, "batch_size": None})
    assert (config.steps, config.out, config.seed, config.batch_size) == (3, "elsewhere", 0, 4)


@pytest.mark.parametrize(
    "old, new, names",
    [
        ("steps = 10", "", ["lacks", "steps"]),
        ("steps = 10", "steps = 0", ["steps is 0", "from 1 up"]),
        ("steps = 10", "steps = 1.5", ["steps", "1.5", "int"]),
        ("steps = 10", "steps = true", ["steps", "True", "int"]),
        ("steps = 10", "steps = 10\nprocesses = 0", ["processes is 0"]),
        ("batch_size = 4", 'batch_size = "4"', ["batch_size", "'4'", "int"]),
        ("learning_rate = 1", 'learning_rate = "fast"', ["learning_rate", "'fast'", "float"]),
        ("learning_rate = 1", "learning_rate = 1\nlearning_rte = 2", ["'learning_rte'", "learning_rate"]),
        ("steps = 10", "steps = 10\nseed = -1", ["seed is -1", "from 0 up"]),
        ("steps = 10", "steps = 10\nema_decay = 1.5", ["ema_decay is 1.5", "0 to 1"]),
        ("crop = 64", 'crop = "64"', ["[vae] crop is '64'", "a whole number from 8"]),
        ("crop = 64", "crop = 64.0", ["[vae] crop is 64.0", "a whole number"]),
        ("crop = 64", "crop = true", ["[vae] crop is True", "a whole number"]),
        ("crop = 64", "decoder_blocks = 3", ["[vae] decoder_blocks is 3", "a list of 4 entries"]),
        ("crop = 64", "decoder_blocks = [3, 3, 3]", ["[vae] decoder_blocks is [3, 3, 3]", "4 entries"]),
        ("crop = 64", "decoder_blocks = [3, 3, 3, 0]", ["[vae] decoder_blocks", "whole number from 1"]),
        ("crop = 64", "transformed = 2", ["[vae] transformed is 2", "a number from 0 to 1"]),
        ("crop = 64", "train_encoder = 0", ["[vae] train_encoder is 0", "true or false"]),
        ("crop = 64", "start_from = 3", ["[vae] start_from is 3", "text"]),
        ("l2 = 2.0", 'flat = "3"', ["[vae.weights] flat is '3'", "a number from 0"]),
        ("crop = 64", "corp = 64", ["[vae]", "'corp'", "nearest is 'crop'"]),
        ("l2 = 2.0", "gradients = 2.0", ["[vae.weights]", "'gradients'", "nearest is 'gradient'"]),
        ("[vae.weights]\nl2 = 2.0", "weights = 2.0", ["vae.weights is 2.0", "[vae.weights]"]),
        ('stage = "vae"', 'stage = "gan"', ["'gan'", "vae", "clip", "diffusion"]),
        ('stage = "vae"', 'stage = "vae"\nprecision = "fp8"', ["'fp8'", "bf16"]),
        ('stage = "vae"', 'stage = "clip"', ["[vae]", "[clip]"]),
        ("[run]", "[run", ["not TOML"]),
    ],
)
def test_mistakes(write, old, new, names):
    path = write(GOOD.replace(old, new))
    with pytest.raises(ContextDiffusionError) as caught:
        load_config(path)
    message = str(caught.value)
    assert "\n" not in message and "stage.toml" in message
    for name in names:
        assert name in message


def test_what_should_be_a_table_and_is_none(write):
    with pytest.raises(ContextDiffusionError, match="run is 3, expected a table"):
        load_config(write("run = 3"))
    with pytest.raises(ContextDiffusionError, match="vae is 3, expected a table"):
        load_config(write("vae = 3\n" + GOOD[: GOOD.index("[vae]")]))


def test_the_stages_own_table_may_be_left_out(write):
    assert load_config(write(GOOD[: GOOD.index("[vae]")])).settings == {}


def test_info_takes_any_names(write):
    text = GOOD[: GOOD.index("[vae]")].replace('"vae"', '"diffusion"')
    config = load_config(write(text + '[diffusion.info]\nname = "mine"\nof_my_own = 1\n'))
    assert config.settings == {"info": {"name": "mine", "of_my_own": 1}}


@pytest.mark.parametrize("stage", SETTINGS)
def test_every_setting_is_read(stage):
    """As an attribute of `settings`, in the files of the stage and of what it begins with, found by parsing them."""
    folder = Path(settings_module.__file__).parent
    read = set()
    for path in (folder / "stages" / f"{stage}.py", *(folder / "begin").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) in ("settings", "self.settings"):
                read.add(node.attr)
    if "more_data" in read:
        # The property that reads all of them.
        read |= {item.name for item in fields(settings_module.MoreData)}
    assert {item.name for item in fields(SETTINGS[stage])} <= read


def test_the_page_has_every_setting():
    """docs/training.md has what the command prints."""
    page = (Path(__file__).parents[3] / "docs" / "training.md").read_text(encoding="utf-8")
    tables = page.partition("<!-- settings -->\n")[2].partition("<!-- end of settings -->")[0]
    command = [sys.executable, "-m", "context_diffusion.training.settings"]
    printed = subprocess.run(command, cwd=Path(__file__).parents[3], capture_output=True, text=True, check=True)
    assert tables == printed.stdout


@pytest.mark.parametrize("stage", SETTINGS)
def test_defaults_are_values_that_a_config_may_have(stage):
    for kind in (RunConfig, SETTINGS[stage]):
        for item in table_fields(kind):
            takes = item.metadata["takes"]
            if item.default not in (None, "") and not is_needed(item) and not isinstance(takes, type):
                assert getattr(kind, item.name, {}) in takes, item.name


def test_on_from_something_trained_its_own_shape_is_the_default():
    new, continued = (read_table(VAESettings, "vae", values) for values in ({}, {"start_from": "runs/vae"}))
    assert (new.encoder_blocks, continued.encoder_blocks) == ((1, 3, 3, 3), None)
    for name in ("start_from", "pretrained"):
        assert read_table(DiffusionSettings, "diffusion", {name: "a.safetensors"}).attention is None
    grown = read_table(DiffusionSettings, "diffusion", {"start_from": "a.safetensors", "attention": [True, True]})
    assert grown.attention == (True, True)
    assert read_table(DiffusionSettings, "diffusion", {"start_from": ""}).attention == (False, True, True)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("crop = 64", "crop = 65", "[vae] crop is 65: give a multiple of 8"),
        ('"vae"', '"clip"', "[clip] width is 100 and heads 3"),
        ('"vae"', '"diffusion"', "[diffusion] largest_k is 4 with 4 members"),
    ],
)
def test_values_that_do_not_fit_together_are_found_before_anything_starts(write, old, new, words):
    text = GOOD.replace(old, new)
    if new == '"clip"':
        text = text.partition("[vae]")[0] + "[clip]\nwidth = 100"
    elif new == '"diffusion"':
        text = text.partition("[vae]")[0] + "[diffusion]\nlargest_k = 4"
    with pytest.raises(ContextDiffusionError) as caught:
        load_config(write(text))
    assert words in str(caught.value) and "stage.toml" in str(caught.value)


def test_a_file_that_is_missing_or_no_text(write, tmp_path):
    with pytest.raises(ContextDiffusionError, match="absent.toml"):
        load_config(tmp_path / "absent.toml")
    with pytest.raises(ContextDiffusionError, match="stage.toml"):
        load_config(write(b"\xff\xfe\x00"))


def test_the_configs_of_the_bundled_model_are_in_order():
    """Each is read without an error, and the three stages are there."""
    folder = Path(__file__).parents[3] / "configs" / "emoji-128"
    stages = [load_config(path).stage for path in sorted(folder.glob("*.toml"))]
    assert stages == ["vae", "clip", "diffusion"]


def test_the_short_recipe_makes_the_same_model():
    """Fewer steps on fewer emoji, in folders of its own; the shape of every part is the bundled model's."""
    folder = Path(__file__).parents[3] / "configs"
    folders = {}
    for path in sorted((folder / "emoji-128-quick").glob("*.toml")):
        whole, short = load_config(folder / "emoji-128" / path.name), load_config(path)
        if short.stage == "diffusion":
            whole = load_config(folder / "emoji-only.toml")
        folders[short.stage] = short.out
        assert short.out == f"runs/emoji-128-quick/{short.stage}" != whole.out
        assert short.data != whole.data and short.steps < whole.steps
        changed = {name for name, value in short.settings.items() if whole.settings[name] != value}
        assert changed == ({"vae", "clip", "pool_groups", "info"} if short.stage == "diffusion" else set())
    assert list(folders) == ["vae", "clip", "diffusion"]
    assert (short.settings["vae"], short.settings["clip"]) == (folders["vae"], folders["clip"])
    assert short.settings["info"]["name"] != whole.settings["info"]["name"]


def test_without_icons_the_model_is_the_same():
    """What differs is which episodes are drawn, and how; nothing of the model."""
    folder = Path(__file__).parents[3] / "configs"
    whole, emoji = load_config(folder / "emoji-128" / "3-diffusion.toml"), load_config(folder / "emoji-only.toml")
    assert {name for name, value in vars(emoji).items() if vars(whole)[name] != value} == {"batch_size", "settings"}
    drawn = {"repeats", "members", "largest_k", "related", "shares"}
    drawn |= {"pool_groups", "icons", "icon_share", "text_dropout"}
    assert {name for name, value in emoji.settings.items() if whole.settings[name] != value} == drawn
    assert whole.settings["icons"] and not emoji.settings["icons"]


def test_a_base_is_what_the_file_does_not_say(write, tmp_path):
    (tmp_path / "more").mkdir()
    (tmp_path / "base.toml").write_text(GOOD)
    child = tmp_path / "more" / "child.toml"
    child.write_text('base = "../base.toml"\n[run]\nsteps = 3\n[vae.weights]\nfeatures = 1.0\n')
    config = load_config(child)
    assert (config.steps, config.batch_size) == (3, 4)
    assert config.settings == {"crop": 64, "weights": {"l2": 2.0, "features": 1.0}}
    (tmp_path / "grandchild.toml").write_text('base = "more/child.toml"\n[vae]\ncrop = 8\n')
    assert load_config(tmp_path / "grandchild.toml").settings["crop"] == 8


@pytest.mark.parametrize(
    ("base", "words"),
    [('"absent.toml"', "absent.toml"), ("3", "base is 3"), ('"stage.toml"', "stage.toml is a base of itself")],
)
def test_a_base_that_is_none(write, base, words):
    with pytest.raises(ContextDiffusionError, match=words):
        load_config(write(f"base = {base}\n" + GOOD))


def test_every_config_of_the_project_is_in_order():
    """Names and values alike: the checks must not refuse what the documents tell to run."""
    for path in sorted((Path(__file__).parents[3] / "configs").rglob("*.toml")):
        load_config(path)
