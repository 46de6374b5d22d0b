"""Training of each ablation and of the baseline: it learns, it resumes, and its file says what it is."""

import pytest
import torch
from safetensors.torch import load_file

from context_diffusion.checkpoint.read import load_checkpoint
from context_diffusion.errors import ContextDiffusionError
from context_diffusion.training.begin.attention import attention_of, with_attention
from context_diffusion.training.run.loop import train
from context_diffusion.training.settings import DiffusionSettings
from research.decoupled import decouple
from research.prompt_diffusion import PromptDiffusion
from research.training import ResearchStage, draw_examples

from ..core.tiny_data import diffusion_config, write_tiny_data, write_tiny_encoders
from ..core.training.test_attention import unet
from ..core.training.test_device import check_step
from .tiny_variants import VARIANTS


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("variants")
    return write_tiny_data(root / "data"), write_tiny_encoders(root / "encoders"), root / "pool"


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def config_of(folders, out, name, **values):
    data, encoders, pool = folders
    config = diffusion_config(data, encoders, out, **values)
    # One pool for all: what is drawn does not depend on the variant.
    config.settings.update(VARIANTS.get(name, {}), pool=str(pool))
    return config


@torch.no_grad()
def loss_now(stage):
    """On batches that no step of a test sees."""
    return sum(float(stage.module(stage.batch(step, 0, 1))[0]) for step in (900, 901))


@pytest.mark.parametrize("name", VARIANTS)
def test_thirty_steps_lower_the_loss(folders, tmp_path, name):
    config = config_of(folders, tmp_path, name, steps=30, learning_rate=3e-3)
    stage = ResearchStage(config)
    stage.prepare(0, 1)
    before = loss_now(stage)
    trained = {key for key, value in stage.module.named_parameters() if value.requires_grad}
    start = {key: value.clone() for key, value in stage.module.named_parameters()}
    train(config, stage)
    assert loss_now(stage) < 0.9 * before
    # Every weight that is trained has moved: none is left without a gradient, which several processes would not bear.
    still = [key for key, value in stage.module.named_parameters() if key in trained and torch.equal(value, start[key])]
    assert still == []
    model = load_checkpoint(tmp_path / "tiny.safetensors")
    assert model.reading == stage.module.model.reading
    assert isinstance(model, PromptDiffusion) == (name == "prompt_diffusion")
    assert type(model.layout_encoder) is type(stage.module.model.layout_encoder)


@pytest.mark.parametrize("name", ["decoupled", "prompt_diffusion"])
def test_a_resumed_run_ends_in_the_same_bits(folders, tmp_path, name):
    for folder, stops in (("whole", (None,)), ("broken", (2, None))):
        for stop in stops:
            config = config_of(folders, tmp_path / folder, name, steps=4, sample_every=4 if folder == "whole" else 0)
            train(config, ResearchStage(config), stop_after=stop)
    for file in ("state.safetensors", "tiny.safetensors"):
        one, other = (load_file(tmp_path / folder / file) for folder in ("whole", "broken"))
        assert one.keys() == other.keys()
        assert [key for key in one if not torch.equal(one[key], other[key])] == []
    # The baseline's sample grid was shown example pairs.
    assert len(list((tmp_path / "whole" / "samples").iterdir())) == 1


def text_to_image(folders, out, **values):
    config = config_of(folders, out, "", **values)
    config.settings.update(layout="none", context_dropout=1.0, text_dropout=0.3)
    return config


def test_text_to_image_reads_the_text_alone(folders, tmp_path):
    stage = ResearchStage(text_to_image(folders, tmp_path, steps=3, learning_rate=3e-3))
    stage.prepare(0, 1)
    batch, model = stage.batch(900, 0, 1), stage.module.model
    with torch.no_grad():
        loss, _ = stage.module(batch)
        text = model.text_encoder(batch["ids"]).last_hidden_state[batch["text"]]
        level, clean = batch["levels"].view(-1, 1, 1, 1), batch["latents"][batch["rows"]]
        noisy = clean + level * (batch["noise"] - clean)
        velocity = model.unet(noisy, 1000 * batch["levels"], text).sample
    torch.testing.assert_close(loss, (velocity - (batch["noise"] - clean)).square().mean(), rtol=1e-5, atol=1e-6)
    start = {key: value.clone() for key, value in stage.module.named_parameters()}
    train(stage.config, stage)
    still = {key.split(".")[1] for key, value in stage.module.named_parameters() if torch.equal(value, start[key])}
    assert still == {"projector", "image_encoder"}
    assert load_checkpoint(tmp_path / "tiny.safetensors").layout_encoder is None


@pytest.mark.parametrize("name", ["default", "prompt_diffusion", "decoupled", "t2i_adapter"])
def test_a_new_model_begins_as_the_pretrained_one(folders, tmp_path, name):
    """ControlNet and example pair begin with zeros: the first predictions are those of text to image."""
    base = ResearchStage(text_to_image(folders, tmp_path / "base", steps=3, learning_rate=3e-3, sample_every=3))
    base.prepare(0, 1)
    train(base.config, base)
    file = tmp_path / "base" / "tiny.safetensors"
    pretrained = load_checkpoint(file, dtype=torch.float32)
    config = config_of(folders, tmp_path / name, name)
    config.settings["pretrained"] = str(file)
    stage = ResearchStage(config)
    stage.prepare(0, 1)
    model, batch = stage.module.model, stage.batch(900, 0, 1)
    for part in ("text_encoder", "image_encoder"):
        if getattr(model, part) is not None:
            own, other = getattr(model, part).state_dict(), getattr(pretrained, part).state_dict()
            assert all(torch.equal(value, other[key]) for key, value in own.items())
    if name != "decoupled":
        assert all(
            torch.equal(value, model.unet.state_dict()[key]) for key, value in pretrained.unet.state_dict().items()
        )
    text = model.text_encoder(batch["ids"]).last_hidden_state[batch["text"]]
    rows, times = batch["rows"], 1000 * batch["levels"]
    noisy = torch.lerp(batch["latents"][rows], batch["noise"], batch["levels"].view(-1, 1, 1, 1))
    with torch.no_grad():
        query = model.encode_query(batch["queries"])
        query = query[rows] if isinstance(query, torch.Tensor) else tuple(level[rows] for level in query)
        expected = pretrained.unet(noisy, times, text).sample
        if name == "prompt_diffusion":
            torch.testing.assert_close(model.predict(noisy, times, text, query), expected, rtol=1e-4, atol=1e-5)
            assert float(stage.module(batch)[0]) == pytest.approx(
                float((expected - batch["noise"] + batch["latents"][rows]).square().mean()), rel=1e-4
            )
        elif name == "default":
            torch.testing.assert_close(model.predict(noisy, times, text, query), expected, rtol=1e-4, atol=1e-5)
    # And what is new is trained.
    before = loss_now(stage)
    config.steps, config.learning_rate = 20, 3e-3
    train(config, stage)
    assert loss_now(stage) < before


def test_a_kept_layout_makes_the_baseline_begin_as_the_whole_model_without_context(folders, tmp_path):
    base = ResearchStage(config_of(folders, tmp_path / "base", "default", steps=3, learning_rate=3e-3))
    base.prepare(0, 1)
    train(base.config, base)
    file = tmp_path / "base" / "tiny.safetensors"
    start = load_checkpoint(file, dtype=torch.float32)
    config = config_of(folders, tmp_path / "grown", "prompt_diffusion")
    config.settings.update(pretrained=str(file), keep_layout=True)
    stage = ResearchStage(config)
    stage.prepare(0, 1)
    batch = stage.batch(900, 0, 1)
    text = start.text_encoder(batch["ids"]).last_hidden_state[batch["text"]]
    rows, times = batch["rows"], 1000 * batch["levels"]
    noisy = torch.lerp(batch["latents"][rows], batch["noise"], batch["levels"].view(-1, 1, 1, 1))
    with torch.no_grad():
        layout = start.encode_query(batch["queries"])[rows]
        velocity = start.predict(noisy, times, text, layout, batch["layout"].view(-1, 1, 1, 1))
        bare = start.unet(noisy, times, text).sample
        loss = float(stage.module(batch)[0])
    target = batch["noise"] - batch["latents"][rows]
    assert loss == pytest.approx(float((velocity - target).square().mean()), rel=1e-4)
    # The trained ControlNet does something: a new one, which begins with zeros, would not give this loss.
    assert loss != pytest.approx(float((bare - target).square().mean()), rel=1e-4)


def test_a_layout_is_kept_of_pretrained_alone(folders, tmp_path):
    config = config_of(folders, tmp_path, "prompt_diffusion")
    config.settings["keep_layout"] = True
    with pytest.raises(ContextDiffusionError, match="pretrained, which is not given"):
        ResearchStage(config)


def test_what_cannot_be_kept_is_named(folders, tmp_path):
    text = ResearchStage(text_to_image(folders, tmp_path / "text", steps=1))
    whole = ResearchStage(config_of(folders, tmp_path / "whole", "default", steps=1))
    for stage in (text, whole):
        stage.prepare(0, 1)
        train(stage.config, stage)
    config = config_of(folders, tmp_path / "grown", "prompt_diffusion")
    config.settings.update(pretrained=str(tmp_path / "text" / "tiny.safetensors"), keep_layout=True)
    with pytest.raises(ContextDiffusionError, match="has no ControlNet and keep_layout asks for it"):
        ResearchStage(config)
    config.settings["pretrained"] = str(tmp_path / "whole" / "tiny.safetensors")
    own = attention_of(whole.module.model.layout_encoder)
    config.settings["layout_attention"] = [not here for here in own]
    with pytest.raises(ContextDiffusionError, match="leave one of layout_attention and keep_layout out"):
        ResearchStage(config)
    config.settings["layout_attention"] = list(own)
    ResearchStage(config)
    config = config_of(folders, tmp_path / "adapter", "t2i_adapter")
    config.settings.update(pretrained=str(tmp_path / "whole" / "tiny.safetensors"), keep_layout=True)
    with pytest.raises(ContextDiffusionError, match="layout is 't2i_adapter'"):
        ResearchStage(config)


def test_pretrained_and_start_from_exclude_each_other(folders, tmp_path):
    config = config_of(folders, tmp_path, "")
    config.settings.update(pretrained="a.safetensors", start_from="b.safetensors")
    with pytest.raises(ContextDiffusionError, match="start_from .* pretrained .* give one"):
        ResearchStage(config)


def test_an_example_is_another_picture_of_the_group():
    for seed in range(40):
        examples = draw_examples(12, 4, torch.Generator().manual_seed(seed))
        assert examples.shape == (12,)
        assert all(one != index and one // 4 == index // 4 for index, one in enumerate(examples.tolist()))
    drawn = torch.stack([draw_examples(4, 4, torch.Generator().manual_seed(seed)) for seed in range(200)])
    assert all(set(column.tolist()) == set(range(4)) - {index} for index, column in enumerate(drawn.T))


def test_the_baseline_sees_what_the_model_sees_and_pairs_of_one_kind(folders, tmp_path):
    """The same batch; the example's query is made as the target's is."""
    stages = {
        name: ResearchStage(config_of(folders, tmp_path / name, name)) for name in ("default", "prompt_diffusion")
    }
    for stage in stages.values():
        stage.prepare(0, 1)
        # Queries by their kind alone: 0 is the usual one, 1 the other.
        pool, pictures = stage.pool, stage.pool.pictures
        pool.pictures = lambda kind, group, members, pictures=pictures: (
            pictures(kind, group, members) if kind == "images" else torch.full((4, 3, 64, 64), kind != "queries") * 1.0
        )
    kinds = set()
    for step in range(6):
        default, baseline = (stage.batch(step, 0, 1) for stage in stages.values())
        assert set(baseline) - set(default) == {"examples", "example_queries"}
        for name, value in default.items():
            assert torch.equal(value, baseline[name]), name
        assert torch.equal(baseline["queries"], baseline["example_queries"])
        assert (
            len(baseline["examples"]) == len(baseline["images"])
            and len(baseline["images"]) % DiffusionSettings.members == 0
        )
        kinds |= set(baseline["queries"].unique().tolist())
    assert kinds == {0.0, 1.0}


@pytest.mark.parametrize(
    "settings",
    [
        {"null_context": "black"},
        {"cross_attention": "decoupled"},
        {"layout": "t2i_adapter"},
        {"baseline": "prompt_diffusion"},
    ],
)
def test_a_step_is_computed_where_the_weights_are(folders, tmp_path, settings):
    config = config_of(folders, tmp_path, "")
    config.settings.update(settings)
    check_step(ResearchStage(config))


def test_decoupled_attention_is_not_lost_on_the_way():
    old = unet(False, True, True)
    decouple(old)
    with pytest.raises(ContextDiffusionError, match="weights of its own kind"):
        with_attention(old, [True, True, True])
