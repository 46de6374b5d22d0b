"""The pool of episodes: the same whoever fills it, and only for the settings and latents it was made with."""

import json

import numpy as np
import pytest
import torch

from context_diffusion.data.library import EmojiLibrary
from context_diffusion.data.mixture import Mixture
from context_diffusion.errors import ContextDiffusionError
from context_diffusion.training.begin.vae import latents_digest, new_vae
from context_diffusion.training.episodes.pool import EpisodePool
from context_diffusion.training.stages.diffusion import DiffusionStage

from ..tiny_data import diffusion_config, write_tiny_data, write_tiny_encoders


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_tiny_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def library(data):
    return EmojiLibrary(data)


def make_pool(folder, library, groups=3, seed=0, shares=None, encoder="a"):
    shares = shares or {"plain": 1.0}
    return EpisodePool(
        folder, Mixture(library), groups, shares, seed, lambda images: images[:, :, ::8, ::8], (3, 8, 8), encoder
    )


def test_a_pool_is_the_same_whoever_fills_it_and_goes_on_after_a_kill(library, tmp_path):
    whole = make_pool(tmp_path / "whole", library)
    whole.fill()
    for rank in (1, 0):
        make_pool(tmp_path / "shared", library).fill(rank, 2)
    shared = make_pool(tmp_path / "shared", library)
    # As if killed in the middle of group 1: the group is made again, and nothing else is.
    shared.arrays["images"][1] = 0
    shared.arrays["latents"][2] = 7
    shared.done[1] = 0
    shared.fill()
    for name, array in whole.arrays.items():
        assert np.array_equal(array[:2], shared.arrays[name][:2]) and array[:2].any()
    assert (shared.arrays["latents"][2] == 7).all()
    assert whole.captions(1) == shared.captions(1)


def test_kinds_have_their_shares(library, tmp_path):
    pool = make_pool(tmp_path, library, 200, shares={"plain": 0.5, "transformed": 0.4, "reverse": 0.1})
    kinds = [pool.kinds[number] for number in pool._kind_of]
    for part in (kinds, kinds[:100], kinds[100:]):
        assert abs(part.count("plain") / len(part) - 0.5) < 0.03
        assert abs(part.count("reverse") / len(part) - 0.1) < 0.03


def test_a_pool_of_other_settings_is_refused(library, tmp_path):
    make_pool(tmp_path, library)
    make_pool(tmp_path, library)
    for other, name in (({"seed": 1}, "seed"), ({"encoder": "b"}, "encoder"), ({"groups": 4}, "settings")):
        with pytest.raises(ContextDiffusionError, match=name) as caught:
            make_pool(tmp_path, library, **other)
        assert "remove" in str(caught.value) and "\n" not in str(caught.value)


def test_runs_of_other_seeds_share_a_pool_that_has_a_seed_of_its_own(data, tmp_path):
    encoders = write_tiny_encoders(tmp_path / "encoders")
    pool, stages = tmp_path / "pool", []
    for seed in (0, 1):
        config = diffusion_config(data, encoders, tmp_path / str(seed), seed=seed)
        config.settings.update(pool=str(pool), pool_seed=7)
        stages.append(DiffusionStage(config))
    first, second = stages
    first.prepare(0, 1)
    made = first.pool.arrays["images"].copy()
    second.prepare(0, 1)
    assert np.array_equal(second.pool.arrays["images"], made) and made.any()
    # The pictures are the pool's, the draws from it each run's own.
    assert not torch.equal(first.batch(0, 0, 1)["noise"], second.batch(0, 0, 1)["noise"])
    config.settings.pop("pool_seed")
    with pytest.raises(ContextDiffusionError, match="seed"):
        DiffusionStage(config)


def test_a_pool_is_for_latents_and_not_for_a_decoder(tmp_path):
    vae = new_vae(4, (1, 1, 1, 1), (1, 1, 1, 1))
    before = latents_digest(vae)
    with torch.no_grad():
        vae.decoder.layers[0].weight.add_(1)
    assert latents_digest(vae) == before
    vae.register_to_config(scaling_factor=0.5)
    rescaled = latents_digest(vae)
    with torch.no_grad():
        vae.encoder.layers[0].weight.add_(1)
    assert len({before, rescaled, latents_digest(vae)}) == 3


def test_a_pool_with_icons_is_none_without(data, library, tmp_path):
    """Either way round; and one from before the data set was noted is taken as it was."""
    icons = EmojiLibrary(write_tiny_data(tmp_path / "icons"))

    def make(folder, *more):
        return EpisodePool(
            folder, Mixture(library, {"icons": more} if more else None), 2, {"plain": 1.0}, 0,
            lambda images: images[:, :, ::8, ::8], (3, 8, 8), "a",
        )  # fmt: skip

    make(tmp_path / "with", icons, 0.3)
    with pytest.raises(ContextDiffusionError, match="icons and icon_share"):
        make(tmp_path / "with")
    make(tmp_path / "without")
    with pytest.raises(ContextDiffusionError, match="icons and icon_share"):
        make(tmp_path / "without", icons, 0.3)
    settings = tmp_path / "without" / "settings.json"
    old = json.loads(settings.read_text())
    settings.write_text(json.dumps({name: old[name] for name in ("seed", "shares", "encoder", "transforms")}))
    make(tmp_path / "without")


def test_a_pool_of_other_data_is_refused(library, tmp_path):
    make_pool(tmp_path / "pool", library)
    folder = write_tiny_data(tmp_path / "data")
    index = json.loads((folder / "index.json").read_text())
    for entry in index["emoji"].values():
        entry["heldout"] = not entry["heldout"]
    (folder / "index.json").write_text(json.dumps(index))
    with pytest.raises(ContextDiffusionError, match="another data"):
        make_pool(tmp_path / "pool", EmojiLibrary(folder))
