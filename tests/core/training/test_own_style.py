"""Training on one's own pictures: every stage, small styles, mixtures, and the light way."""

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch.nn.utils import parametrize

from context_diffusion.checkpoint.lora import apply_lora, lora_names
from context_diffusion.checkpoint.read import load_checkpoint
from context_diffusion.checkpoint.write import save_checkpoint
from context_diffusion.data.folders import build_folder
from context_diffusion.data.library import EmojiLibrary
from context_diffusion.data.mixture import Mixture
from context_diffusion.errors import ContextDiffusionError
from context_diffusion.training.begin.lora import add_lora
from context_diffusion.training.run.loop import train
from context_diffusion.training.stages.clip import CLIPStage
from context_diffusion.training.stages.diffusion import DiffusionStage
from context_diffusion.training.stages.vae import VAEStage

from ..tiny import tiny_model
from ..tiny_data import (
    MARKS,
    SHAPES,
    SIZE,
    clip_config,
    diffusion_config,
    draw,
    vae_config,
    write_tiny_data,
    write_tiny_encoders,
)  # fmt: skip


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """Twelve pictures of one style, two of them held out: fewer than a pool's group has."""
    folder = tmp_path_factory.mktemp("pictures") / "mine"
    folder.mkdir()
    for shape in SHAPES[:3]:
        for mark in MARKS[:4]:
            draw(shape, mark, "#804020", "green").save(folder / f"{mark} {shape}.png")
    out = tmp_path_factory.mktemp("own")
    build_folder(out, folder.parent, SIZE, 1, quiet=True)
    return out


@pytest.fixture(scope="module")
def encoders(tmp_path_factory):
    return write_tiny_encoders(tmp_path_factory.mktemp("encoders"))


def test_pictures_of_a_small_style_meet_no_copy_of_themselves(own, encoders, tmp_path):
    config = diffusion_config(own, encoders, tmp_path, batch_size=16)
    config.settings |= {"members": 8, "largest_k": 7, "shares": {"plain": 1.0}, "pool_groups": 4, "related": 0.5}
    stage = DiffusionStage(config)
    assert len(stage.library.train_keys["mine"]) == 10
    stage.prepare(0, 1)
    for step in range(30):
        images = stage.batch(step, 0, 1)["images"]
        assert len({image.numpy().tobytes() for image in images}) == 8
    config.settings["members"] = 16
    with pytest.raises(ContextDiffusionError, match="10 pictures of mine.*members is 16"):
        DiffusionStage(config)


def test_every_stage_trains_previews_and_ends_on_a_small_style(own, encoders, tmp_path):
    vae = train(vae_config(own, tmp_path / "vae", steps=1, sample_every=1), VAEStage(vae_config(own, tmp_path)))
    assert (vae / "vae" / "config.json").is_file() and list((vae / "samples").glob("*.png"))
    assert np.isfinite(float((vae / "figures.txt").read_text().split()[-2]))
    clip = train(clip_config(own, tmp_path / "clip", steps=1), CLIPStage(clip_config(own, tmp_path)))
    assert (clip / "tokenizer.json").is_file()
    config = diffusion_config(own, encoders, tmp_path / "diffusion", steps=1, sample_every=1)
    out = train(config, DiffusionStage(config))
    assert load_checkpoint(out / "tiny.safetensors") and list((out / "samples").glob("*.png"))


@pytest.mark.parametrize("missing", [("vae",), ("text_encoder", "tokenizer"), ("image_encoder",)])
@pytest.mark.parametrize("name", ["start_from", "pretrained"])
def test_a_checkpoint_that_lacks_what_training_reads_is_named(own, encoders, tmp_path, name, missing):
    model = tiny_model()
    for part in missing:
        setattr(model, part, None)
    file = save_checkpoint(model, tmp_path / "parts.safetensors")
    config = diffusion_config(own, encoders, tmp_path)
    config.settings = {name: str(file), "pool_groups": 2, "repeats": 2}
    with pytest.raises(ContextDiffusionError, match=f"{name} = .*parts.safetensors' has no {', '.join(missing)}: give"):
        DiffusionStage(config)


def test_pictures_of_a_size_that_no_latents_have(encoders, tmp_path):
    folder = tmp_path / "pictures" / "mine"
    folder.mkdir(parents=True)
    for number, mark in enumerate(MARKS[:4] * 3):
        draw(SHAPES[number // 4], mark, "#804020", "green").save(folder / f"{number}.png")
    build_folder(tmp_path / "own", folder.parent, 20, 1, heldout=0, quiet=True)
    with pytest.raises(ContextDiffusionError, match="pictures of 20 pixels.*--size that is a multiple of 8"):
        DiffusionStage(diffusion_config(tmp_path / "own", encoders, tmp_path))


def test_a_mixture_draws_by_its_shares(own, tmp_path):
    emoji = EmojiLibrary(write_tiny_data(tmp_path / "emoji"))
    icons = EmojiLibrary(write_tiny_data(tmp_path / "icons"))
    mine = EmojiLibrary(own)
    mixture = Mixture(emoji, {"icons": (icons, 0.2), "own": (mine, 0.5)})
    rng = np.random.default_rng(0)
    drawn = [mixture.draw(rng) for _ in range(2000)]
    for library, share in ((emoji, 0.3), (icons, 0.2), (mine, 0.5)):
        assert abs(drawn.count(library) / 2000 - share) < 0.04
    rng, untouched = np.random.default_rng(1), np.random.default_rng(1)
    assert Mixture(emoji).draw(rng) is emoji and rng.random() == untouched.random()


@pytest.mark.parametrize("make, configure", [(VAEStage, vae_config), (CLIPStage, clip_config)])
def test_vae_and_clip_take_own_pictures_beside_the_emoji(make, configure, own, tmp_path):
    config = configure(write_tiny_data(tmp_path / "emoji"), tmp_path, batch_size=8)
    config.settings |= {"own": str(own), "own_share": 0.5, "transformed": 0.0}
    stage = make(config)
    seen = set()
    for library in stage.mixture:
        batch = library.batch
        library.batch = lambda style, keys, batch=batch: seen.add(style) or batch(style, keys)
    for step in range(6):
        stage.batch(step, 0, 1)
    assert "mine" in seen and seen & {"openmoji", "openmoji-black", "twemoji"}


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"own": "data/own"}, "own_share 0.0: give a share"),
        ({"own_share": 0.5}, "own names no data set"),
        ({"icons": "a", "icon_share": 0.6, "own": "b", "own_share": 0.6}, "1 in all"),
        ({"own": "no/such/folder", "own_share": 0.5}, "no/such/folder holds no data set"),
    ],
)
def test_mixtures_that_cannot_be(own, tmp_path, settings, words):
    config = vae_config(own, tmp_path)
    config.settings |= settings
    with pytest.raises(ContextDiffusionError, match=words):
        VAEStage(config)


def flow_checkpoint(path):
    model = tiny_model(prediction_type="flow")
    model.info["title"] = "tiny"
    return save_checkpoint(model, path)


def test_a_lora_begins_as_nothing_and_is_all_that_is_trained():
    model = tiny_model(prediction_type="flow")
    inputs = (
        torch.randn(2, 4, 8, 8),
        torch.tensor([100.0, 900.0]),
        torch.randn(2, 9, model.projector.linear.out_features),
    )
    before = model.unet(*inputs).sample
    changes = add_lora(model, 4)
    torch.testing.assert_close(model.unet(*inputs).sample, before)
    trained = {id(value) for value in model.parameters() if value.requires_grad}
    assert trained == {id(value) for change in changes.values() for value in change.parameters()}
    # All of the transformers, and of nothing else: keys, values, queries, outputs, both layers of the MLP, projections.
    expected = {
        f"lora_unet_{name}".replace(".", "_")
        for name, layer in model.unet.named_modules()
        if ".attentions." in name and parametrize.is_parametrized(layer)
    }
    assert set(changes) == expected and len(changes) % 12 == 0


def test_a_lora_is_trained_and_its_file_makes_the_trained_model(own, tmp_path):
    start = flow_checkpoint(tmp_path / "start.safetensors")
    config = diffusion_config(own, "", tmp_path / "lora", steps=3, learning_rate=1e-2, ema_decay=0.0)
    kept = {"repeats", "pool_groups", "shares", "info"}
    config.settings = {name: value for name, value in config.settings.items() if name in kept}
    config.settings |= {"start_from": str(start), "lora_rank": 2, "shares": {"plain": 1.0}}
    stage = DiffusionStage(config)
    out = train(config, stage)
    file = out / "tiny.safetensors"
    with safe_open(file, "pt") as read:
        assert read.metadata()["ss_network_dim"] == "2" and read.metadata()["modelspec.title"] == "tiny"
        assert any(read.get_tensor(name).abs().max() > 0 for name in read.keys() if "lora_up" in name)  # noqa: SIM118
    model = load_checkpoint(start, dtype=torch.float32)
    plain = {name: weight.clone() for name, weight in lora_names(model).items()}
    apply_lora(model, file)
    applied = lora_names(model)
    assert {name for name in applied if not torch.equal(applied[name], plain[name])} == set(stage.lora)
    for name, change in stage.lora.items():
        # Without an average the last weights are the result, but for the file's half precision.
        torch.testing.assert_close(applied[name], change(plain[name]), atol=1e-3, rtol=0)
