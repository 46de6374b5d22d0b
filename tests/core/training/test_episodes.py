"""Episodes: what may be whose context, what a group shares, and that held-out emoji are never drawn."""

import json

import numpy as np
import pytest
import torch

from context_diffusion.data.library import EmojiLibrary
from context_diffusion.data.mixture import Mixture
from context_diffusion.errors import ContextDiffusionError
from context_diffusion.maps import make_map
from context_diffusion.training.config import RunConfig
from context_diffusion.training.episodes import groups as episodes
from context_diffusion.training.episodes.groups import REVERSE_MAPS, context_matrix, draw_group, draw_keys
from context_diffusion.training.stages.clip import CLIPStage
from context_diffusion.training.stages.diffusion import DiffusionStage
from context_diffusion.training.stages.vae import VAEStage

from ..tiny_data import SIZE, clip_config, diffusion_config, vae_config, write_tiny_data, write_tiny_encoders

KINDS = ("plain", "transformed", "reverse")


class WatchedLibrary(EmojiLibrary):
    """Notes every picture that is asked for."""

    def __init__(self, folder):
        super().__init__(folder)
        self.seen = set()

    def batch(self, style, keys):
        self.seen.update((style, key) for key in keys)
        return super().batch(style, keys)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_tiny_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def library(data):
    return EmojiLibrary(data)


@pytest.fixture(scope="module")
def stage(data, tmp_path_factory):
    """The diffusion stage with its pool filled."""
    encoders = write_tiny_encoders(tmp_path_factory.mktemp("encoders"))
    stage = DiffusionStage(diffusion_config(data, encoders, tmp_path_factory.mktemp("out")))
    stage.prepare(0, 1)
    return stage


def only_training_pictures(library, pictures):
    return all(style in library.train_styles and not library.emoji[key]["heldout"] for style, key in pictures)


# context_matrix


@pytest.mark.parametrize("members, repeats, largest", [(4, 4, 3), (4, 1, 3), (3, 2, 3), (6, 2, 2)])
def test_a_target_is_never_its_own_context(members, repeats, largest):
    rows = torch.arange(3 * members).repeat_interleave(repeats)
    for seed in range(60):
        matrix = context_matrix(rows, members, torch.Generator().manual_seed(seed), 0.2, largest)
        assert matrix.shape == (len(rows), 3 * members)
        assert (matrix[torch.arange(len(rows)), rows] == 0).all()
        # Only pictures of the target's own group.
        assert all(
            unique // members == row // members
            for line, row in zip(matrix, rows.tolist(), strict=True)
            for unique in line.nonzero().flatten().tolist()
        )
        totals, counts = matrix.sum(1), (matrix > 0).sum(1)
        assert all(abs(total - 1) < 1e-6 or total == 0 for total in totals.tolist())
        assert counts.max() <= min(largest, members - 1)
        # Equal weights: the mean over the k images of section 3.2.
        used = counts > 0
        torch.testing.assert_close(matrix.amax(1)[used], 1 / counts[used].float())


def test_k_is_uniform_and_dropout_has_its_share():
    rows = torch.arange(8).repeat_interleave(1000)
    matrix = context_matrix(rows, 4, torch.Generator().manual_seed(0), dropout=0.12)
    counts = torch.bincount((matrix > 0).sum(1), minlength=4) / len(rows)
    assert len(counts) == 4
    # Four standard deviations of 8000 draws.
    assert abs(counts[0] - 0.12) < 0.015
    assert (counts[1:] - 0.88 / 3).abs().max() < 0.021
    # Each of the other three members is as likely to be chosen.
    chosen = (matrix[rows == 1] > 0).float().mean(0)
    assert (chosen[[0, 2, 3]] - 0.88 * 2 / 3).abs().max() < 0.065


def test_dropout_of_all_and_of_none():
    rows = torch.arange(8)
    assert context_matrix(rows, 4, torch.Generator().manual_seed(0), 1.0).abs().sum() == 0
    assert (context_matrix(rows, 4, torch.Generator().manual_seed(0), 0.0).sum(1) > 0.99).all()


# draw_keys, draw_group


def test_keys_come_in_runs_of_one_subgroup(library):
    among = library.train_keys["twemoji"]
    for seed in range(20):
        keys = draw_keys(library, "twemoji", 16, np.random.default_rng(seed), among)
        assert len(set(keys)) == 16 and set(keys) <= set(among)
        runs = [{library.subgroup(key) for key in keys[start : start + 4]} for start in range(0, 16, 4)]
        assert all(len(run) == 1 for run in runs) and len(set.union(*runs)) == 4


def test_too_few_large_subgroups_give_any_of_the_style_in_turn(library):
    among = library.train_keys["twemoji"][:8]
    orders = set()
    for seed in range(5):
        keys = draw_keys(library, "twemoji", 16, np.random.default_rng(seed), among)
        # As many in succession as there are keys are distinct, wherever a batch's members begin.
        assert all(set(keys[start : start + 8]) == set(among) for start in range(9))
        orders.add(tuple(keys))
    assert len(orders) == 5


@pytest.mark.parametrize("kind", KINDS)
def test_only_training_emoji_are_drawn(data, kind):
    library = WatchedLibrary(data)
    for seed in range(6):
        group = draw_group(library, np.random.default_rng(seed), kind)
        assert len(set(group.keys)) == len(group.images) == len(group.captions) == 16
        assert group.images.shape == group.queries.shape == group.other_queries.shape == (16, 3, SIZE, SIZE)
    assert len(library.seen) > 16 and only_training_pictures(library, library.seen)


def test_a_plain_group_is_one_style(library):
    styles = set()
    for seed in range(8):
        group = draw_group(library, np.random.default_rng(seed), "plain")
        assert torch.equal(group.images, library.batch(group.style, group.keys))
        torch.testing.assert_close(group.queries, make_map(group.images, "softedge"))
        styles.add(group.style)
    assert len(styles) > 1


def test_a_transformed_group_is_redrawn_by_one_transform(library, monkeypatch):
    drawn = []

    def sample(rng):
        drawn.append(sample_transform(rng))
        return drawn[-1]

    sample_transform = episodes.sample_transform
    monkeypatch.setattr(episodes, "sample_transform", sample)
    for seed in range(6):
        drawn.clear()
        group = draw_group(library, np.random.default_rng(seed), "transformed")
        assert len(drawn) == 1
        for key, image in zip(group.keys, group.images, strict=True):
            alone = drawn[0](library.batch(group.style, [key]), library.background(group.style, [key]))
            torch.testing.assert_close(image[None], alone, rtol=0, atol=1e-6)


def test_a_reverse_group_makes_maps_of_images(library):
    names = set()
    for seed in range(8):
        group = draw_group(library, np.random.default_rng(seed), "reverse")
        assert group.style in REVERSE_MAPS
        torch.testing.assert_close(group.images, make_map(group.queries, group.style))
        drawings = [library.batch(style, group.keys) for style in library.train_styles]
        assert sum(torch.equal(group.queries, drawing) for drawing in drawings) == 1
        assert all("map" in caption for captions in group.captions for caption in captions)
        names.add(group.style)
    assert len(names) > 1


# The stages' real batches


def test_no_picture_of_the_diffusion_stage_is_its_own_context(stage):
    """Keys and pixels of target and context, over many steps of both of two processes."""
    pool = stage.pool
    table = {
        pool.arrays["images"][group][member].tobytes(): (group, member)
        for group in range(pool.groups)
        for member in range(16)
    }
    # All pictures of the pool differ, so that pixels name them.
    assert len(table) == 16 * pool.groups
    keys = [json.loads((pool.folder / f"{group:05d}.json").read_text())["keys"] for group in range(pool.groups)]
    drops = {"context": [], "text": [], "layout": []}
    for step in range(30):
        for rank in range(2):
            batch = stage.batch(step, rank, 2)
            images = (batch["images"] * 255).round().byte().permute(0, 2, 3, 1).numpy()
            names = [table[image.tobytes()] for image in images]
            for row, target in enumerate(batch["rows"].tolist()):
                group, member = names[target]
                context = [names[unique] for unique in batch["context"][row].nonzero().flatten().tolist()]
                assert len(context) <= 3 and len(set(context)) == len(context)
                for other_group, other in context:
                    assert other_group == group and keys[group][other] != keys[group][member]
            drops["context"] += (batch["context"].sum(1) == 0).tolist()
            drops["text"] += (batch["text"] == 0).tolist()
            drops["layout"] += (batch["layout"] == 0).tolist()
            # A row's text is its own picture's, or the null text.
            assert ((batch["text"] == 0) | (batch["text"] == batch["rows"] + 1)).all()
    for name, share in (("context", 0.12), ("text", 0.45), ("layout", 0.05)):
        # 960 rows.
        assert abs(np.mean(drops[name]) - share) < 0.065, name


@torch.no_grad()
def test_latents_queries_and_captions_belong_to_their_picture(stage):
    pool = stage.pool
    for step in range(3):
        batch = stage.batch(step, 0, 1)
        # The pool keeps 8-bit pictures and 16-bit latents.
        torch.testing.assert_close(stage._encode(batch["images"]), batch["latents"], rtol=0.02, atol=0.02)
        texts = stage.module.model.tokenizer.batch_decode(batch["ids"], skip_special_tokens=True)
        assert texts[0] == ""
        for text, image in zip(texts[1:], batch["images"], strict=True):
            pixels = (image * 255).round().byte().permute(1, 2, 0).numpy()
            (group, member), *_ = [
                (group, member)
                for group in range(pool.groups)
                for member in range(16)
                if np.array_equal(pool.arrays["images"][group][member], pixels)
            ]
            known = [" ".join(caption.lower().split()) for caption in pool.captions(group)[member]]
            assert text.replace(" ", "") in [caption.replace(" ", "") for caption in known]


def test_a_batch_is_a_function_of_step_and_process(stage):
    first, again, other_step, other_rank = (
        stage.batch(*place) for place in ((5, 0, 2), (5, 0, 2), (6, 0, 2), (5, 1, 2))
    )
    assert all(torch.equal(first[name], again[name]) for name in first)
    for name in ("noise", "levels"):
        assert not torch.equal(first[name], other_step[name]) and not torch.equal(first[name], other_rank[name])


def test_vae_and_clip_batches_hold_training_pictures_only(data, tmp_path):
    for make, config in ((VAEStage, vae_config), (CLIPStage, clip_config)):
        stage = make(config(data, tmp_path, batch_size=8))
        library = WatchedLibrary(data)
        stage.mixture = Mixture(library)
        first = stage.batch(0, 0, 1)
        for step in range(1, 12):
            stage.batch(step, 0, 1)
        assert len(library.seen) > 30 and only_training_pictures(library, library.seen)
        again = stage.batch(0, 0, 1)
        assert all(torch.equal(first[name], again[name]) for name in first)


def test_captions_of_the_clip_stage_fit_in_their_ids(data, tmp_path):
    """Every caption ends in the end token, whose place is told."""
    stage = CLIPStage(clip_config(data, tmp_path, batch_size=8))
    batch = stage.batch(0, 0, 1)
    end = stage.tokenizer.eos_token_id
    for ids, place in zip(batch["ids"].tolist(), batch["ends"].tolist(), strict=True):
        assert ids[place] == end and end not in ids[:place] and place > 1
    loss, numbers = stage.module(batch)
    assert torch.isfinite(loss) and 0 <= float(numbers["accuracy"]) <= 1


# The pool


def test_larger_groups_give_a_row_more_context_images(stage):
    config = RunConfig(**{**vars(stage.config), "batch_size": 16})
    config.settings = {**stage.config.settings, "pool": str(stage.pool.folder), "members": 8, "largest_k": 6}
    wider = DiffusionStage(config)
    wider.prepare(0, 1)
    counts = set()
    for step in range(40):
        batch = wider.batch(step, 0, 1)
        assert len(batch["images"]) == 8 and batch["context"].shape == (16, 8)
        counts |= set((batch["context"] > 0).sum(1).tolist())
        assert (batch["context"][torch.arange(16), batch["rows"]] == 0).all()
    assert counts - {0} == {1, 2, 3, 4, 5, 6}


@pytest.mark.parametrize("related", [0.0, 0.5, 1.0])
def test_a_share_of_the_draws_takes_whole_runs_of_one_subgroup(stage, related):
    config = RunConfig(**vars(stage.config))
    config.settings = {**stage.config.settings, "pool": str(stage.pool.folder), "related": related}
    rng = np.random.default_rng(0)
    other = DiffusionStage(config)
    drawn = [other._members(rng) for _ in range(400)]
    assert all(len(set(members.tolist())) == 4 for members in drawn)
    runs = [members for members in drawn if members[0] % 4 == 0 and (np.diff(members) == 1).all()]
    # Four of sixteen at random are such a run in one of some thousand draws.
    assert abs(len(runs) / 400 - related) < 0.08


@pytest.mark.parametrize("mean", [-1.5, 0.0, 1.0])
def test_noise_levels_gather_where_the_run_says(stage, mean):
    config = RunConfig(**vars(stage.config))
    config.settings = {
        **stage.config.settings,
        "pool": str(stage.pool.folder),
        "noise_mean": mean,
        "noise_uniform": 0.0,
    }
    other = DiffusionStage(config)
    levels = torch.cat([other.batch(step, 0, 1)["levels"] for step in range(100)])
    # Back through the logistic function they are normal, with that mean and a deviation of one.
    normal = torch.logit(levels)
    assert abs(float(normal.mean()) - mean) < 0.1 and abs(float(normal.std()) - 1) < 0.1


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"noise_uniform": 1.5}, "noise_uniform is 1.5.*0 to 1"),
        ({"noise_mean": "high"}, "noise_mean is 'high'.*number"),
    ],
)
def test_noise_levels_that_cannot_be(stage, settings, words):
    config = RunConfig(**vars(stage.config))
    config.settings = {**stage.config.settings, **settings}
    with pytest.raises(ContextDiffusionError, match=words):
        DiffusionStage(config)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"members": 5}, "members is 5.*4, 8 or 16"),
        ({"largest_k": 4}, "largest_k is 4 with 4 members.*1 to 3"),
        ({"members": 8, "largest_k": 8}, "largest_k is 8 with 8 members.*1 to 7"),
        ({"members": 8, "largest_k": 0}, "largest_k is 0.*from 1 up"),
        ({"related": 1.2}, "related is 1.2.*0 to 1"),
        ({"members": 16}, "batch_size is 16.*multiple of 32.*16 members"),
    ],
)
def test_episodes_that_cannot_be(stage, settings, words):
    config = RunConfig(**vars(stage.config))
    config.settings = {**stage.config.settings, **settings}
    with pytest.raises(ContextDiffusionError, match=words):
        DiffusionStage(config)


# Icons beside the emoji


@pytest.fixture(scope="module")
def icons(tmp_path_factory):
    """The tiny data again, its first two styles one set in one layout, told from the emoji by names of their own."""
    folder = write_tiny_data(tmp_path_factory.mktemp("icons"))
    index = json.loads((folder / "index.json").read_text())
    for style in ("openmoji", "openmoji-black", "twemoji"):
        (folder / "images" / style).rename(folder / "images" / f"icon-{style}")
    index["styles"] = {
        f"icon-{style}": {**index["styles"][style], "set": "icon" if style.startswith("open") else style}
        for style in ("openmoji", "openmoji-black", "twemoji")
    }
    (folder / "index.json").write_text(json.dumps(index))
    return folder


def test_groups_of_icons_have_their_share(data, icons, tmp_path):
    config = diffusion_config(data, write_tiny_encoders(tmp_path / "encoders"), tmp_path / "out")
    config.settings.update(icons=str(icons), icon_share=0.4, pool_groups=60)
    stage = DiffusionStage(config)
    stage.prepare(0, 1)
    groups = [json.loads((stage.pool.folder / f"{number:05d}.json").read_text()) for number in range(60)]
    plain = [group["style"] for group in groups if group["kind"] != "reverse"]
    share = sum(style.startswith("icon-") for style in plain) / len(plain)
    # Three standard deviations of some forty draws.
    assert abs(share - 0.4) < 0.25 and 0 < share < 1
    assert torch.isfinite(stage.module(stage.batch(0, 0, 1))[0])
    config.settings["icon_share"] = 0.5
    with pytest.raises(ContextDiffusionError, match="another icon_share"):
        DiffusionStage(config)


def test_another_variant_of_an_icon_is_its_other_query(icons):
    library = EmojiLibrary(icons)
    assert library.same_layout("icon-openmoji") == ["icon-openmoji-black"] and not library.same_layout("icon-twemoji")
    found = 0
    for seed in range(40):
        group = draw_group(library, np.random.default_rng(seed), "plain")
        for other in library.same_layout(group.style):
            found += torch.equal(group.other_queries, library.batch(other, group.keys))
    assert found > 5


def test_a_set_counts_as_one_style(icons):
    library = EmojiLibrary(icons)
    rng = np.random.default_rng(0)
    drawn = [library.draw_style(rng) for _ in range(400)]
    assert abs(drawn.count("icon-twemoji") / 400 - 0.5) < 0.1
    assert min(drawn.count("icon-openmoji"), drawn.count("icon-openmoji-black")) > 60


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"icon_share": 0.3}, "icon_share is 0.3 and icons names no data set"),
        ({"icons": "data/icons"}, "icon_share 0.0: give a share up to 1"),
        ({"icons": "no/such/folder", "icon_share": 0.3}, "no/such/folder holds no"),
    ],
)
def test_icons_that_cannot_be(stage, settings, words):
    config = RunConfig(**vars(stage.config))
    config.settings = {**stage.config.settings, **settings}
    with pytest.raises(ContextDiffusionError, match=words):
        DiffusionStage(config)


def test_icons_of_another_size(stage, tmp_path):
    other = write_tiny_data(tmp_path / "icons", size=32)
    config = RunConfig(**vars(stage.config))
    config.settings = {**stage.config.settings, "icons": str(other), "icon_share": 0.3}
    with pytest.raises(ContextDiffusionError, match=r"icons are 32 pixels and those of .* 64"):
        DiffusionStage(config)
