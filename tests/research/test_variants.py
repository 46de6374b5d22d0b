"""Each ablation against the arithmetic that it claims, and as a checkpoint."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from context_diffusion.checkpoint.native import check_native_limits
from context_diffusion.checkpoint.read import load_checkpoint, read_metadata
from context_diffusion.checkpoint.stored import read_stored
from context_diffusion.checkpoint.write import save_checkpoint
from context_diffusion.errors import ContextDiffusionError
from context_diffusion.model.context_diffusion import ContextDiffusion
from context_diffusion.model.reading import Reading
from context_diffusion.model.visual_context import clip_preprocess
from context_diffusion.sampling.flow import FlowSampler, SamplingBatch
from context_diffusion.sampling.pipeline import ContextDiffusionPipeline
from context_diffusion.training.config import read_table
from context_diffusion.training.episodes.context import row_contexts
from research.training import ResearchSettings, build_model, check_start

from ..core.tiny import TEXT_WIDTH, VISION_WIDTH, tiny_model
from .tiny_variants import VARIANTS, tiny_variant

N = 5  # tokens of a context image
LIMITS = {
    "decoupled": "cross_attention",
    "penultimate": "context_hidden_state",
    "black": "null_context",
    "t2i_adapter": "T2IAdapter",
    "prompt_diffusion": "example_encoder",
}


@pytest.fixture(scope="module")
def models():
    return {name: tiny_variant(name) for name in VARIANTS}


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def pictures(*shape, seed=0):
    return torch.rand((*shape, 3, 64, 64), generator=torch.Generator().manual_seed(seed))


def tokens_of(model, images):
    return model.image_encoder(pixel_values=clip_preprocess(images, 32)).last_hidden_state


def test_a_variant_is_known_by_what_it_changes():
    assert Reading().changes == {} and Reading.of({}) == Reading()
    assert Reading.of({"null_context": "zeros", "aggregation": "mean"}) == Reading()
    assert Reading.of({"aggregation": "sum"}).changes == {"aggregation": "sum"}
    mistakes = (({"aggregation": "max"}, "mean, sum, concat"), ({"layers": 1}, "layers"), ([1], "not a table"))
    for table, words in mistakes:
        with pytest.raises(ContextDiffusionError, match=words):
            Reading.of(table)


# Decoupled cross-attention


@torch.no_grad()
def test_decoupled_attention_is_the_sum_of_two(models):
    layer = models["decoupled"].unet.down_blocks[0].attentions[0].transformer_blocks[0].attn2
    x, text, context = random(2, 9, 32), random(2, 77, TEXT_WIDTH, seed=1), random(2, N, TEXT_WIDTH, seed=2)

    def attend(tokens, to_k, to_v):
        q, k, v = x @ layer.to_q.weight.T, tokens @ to_k.weight.T, tokens @ to_v.weight.T
        heads = [part.unflatten(2, (layer.heads, -1)) for part in (q, k, v)]
        scores = torch.einsum("bphd,bthd->bhpt", heads[0], heads[1]) / heads[0].shape[-1] ** 0.5
        return torch.einsum("bhpt,bthd->bphd", scores.softmax(-1), heads[2]).flatten(2)

    read = attend(text, layer.to_k, layer.to_v) + attend(context, layer.processor.to_k, layer.processor.to_v)
    expected = read @ layer.to_out[0].weight.T + layer.to_out[0].bias
    torch.testing.assert_close(layer(x, encoder_hidden_states=(text, context)), expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_decoupled_with_no_context_is_text_alone(models):
    """Zero tokens add nothing, in the UNet and in the layout encoder; other tokens do."""
    plain, model = tiny_model(prediction_type="flow"), models["decoupled"]
    z, t, text, query = random(2, 4, 8, 8), torch.tensor([900.0, 100.0]), random(2, 77, TEXT_WIDTH), pictures(2)
    expected = plain.predict(z, t, text, query)
    silent = model.predict(z, t, model.condition(text, model.null_context(2)), query)
    torch.testing.assert_close(silent, expected, rtol=1e-4, atol=1e-5)
    y = model.condition(text, random(2, N, TEXT_WIDTH, seed=3))
    heard = model.predict(z, t, y, query)
    assert (heard - expected).abs().max() > 1e-3
    # A text of another length is told apart by the context's.
    torch.testing.assert_close(model.predict(z, t, y, query, context_tokens=N), heard, rtol=0, atol=0)
    assert (model.predict(z, t, y, query, context_tokens=N + 1) - heard).abs().max() > 1e-6


def test_a_fresh_decoupled_model_starts_from_the_layers_own_projections():
    model = tiny_model()
    parts = {"unet": model.unet, "projector": model.projector, "layout_encoder": model.layout_encoder}
    model = build_model(parts, ResearchSettings(cross_attention="decoupled"))
    for network in (model.unet, model.layout_encoder):
        layer = network.mid_block.attentions[0].transformer_blocks[0].attn2
        assert torch.equal(layer.processor.to_k.weight, layer.to_k.weight)
        assert torch.equal(layer.processor.to_v.weight, layer.to_v.weight)


def test_a_network_and_its_variant_must_agree(models):
    with pytest.raises(ContextDiffusionError, match="'decoupled' and the UNet's is not"):
        ContextDiffusion(tiny_model().unet, None, reading=Reading.of({"cross_attention": "decoupled"}))
    model = ContextDiffusion(models["decoupled"].unet, None)
    with pytest.raises(ContextDiffusionError, match="is decoupled and the model's is not"):
        model.predict(random(2, 4, 8, 8), torch.tensor(1.0), random(2, 82, TEXT_WIDTH))


# Layout by an adapter


@torch.no_grad()
def test_the_adapters_features_are_added_to_the_down_blocks(models):
    """Against diffusers' own way, which is right where all blocks have attention."""
    model = models["t2i_adapter"]
    z, t, y, query = random(2, 4, 8, 8), torch.tensor([900.0, 100.0]), random(2, 82, TEXT_WIDTH), pictures(2)
    features = model.layout_encoder(query)
    assert [tuple(one.shape) for one in features] == [(2, 32, 8, 8), (2, 64, 4, 4)]
    expected = model.unet(z, t, y, down_intrablock_additional_residuals=[one.clone() for one in features]).sample
    for given in (query, model.encode_query(query)):
        torch.testing.assert_close(model.predict(z, t, y, given), expected, rtol=1e-4, atol=1e-5)
    alone = model.unet(z, t, y).sample
    assert (alone - expected).abs().max() > 1e-3
    rows = model.predict(z, t, y, query, torch.tensor([1.0, 0.0]).view(-1, 1, 1, 1))
    torch.testing.assert_close(rows, torch.stack([expected[0], alone[1]]), rtol=1e-4, atol=1e-5)
    # Nothing stays behind in the UNet.
    torch.testing.assert_close(model.unet(z, t, y).sample, alone, rtol=0, atol=0)


def test_the_adapter_runs_once_an_image(models):
    model, calls = models["t2i_adapter"], []
    handle = model.layout_encoder.register_forward_hook(lambda *_: calls.append(1))
    try:
        FlowSampler(model, steps=3).generate(SamplingBatch((1, 2), pictures(2), pictures(2, 2), size=64))
        assert len(calls) == 1
        pipe = ContextDiffusionPipeline.from_model(model)
        pipe(context_images=pictures(2), query_map=pictures(1), num_inference_steps=3, output_type="latent")
        assert len(calls) == 2
    finally:
        handle.remove()


# What a row's context is


@torch.no_grad()
@pytest.mark.parametrize("name", ["mean", "sum", "concat", "black"])
def test_row_contexts_by_hand(models, name):
    """Rows of three, one and no context image."""
    model = models.get(name) or tiny_model()
    tokens = random(4, N, VISION_WIDTH)
    weights = torch.tensor([[0, 1 / 3, 1 / 3, 1 / 3], [0, 0, 1, 0], [0, 0, 0, 0]])
    null = torch.zeros(1, N, TEXT_WIDTH)
    if name == "black":
        null = model.projector(tokens_of(model, torch.zeros(1, 3, 32, 32)))
    few, one = tokens[1:], tokens[2:3]
    if name == "concat":
        h = model.projector(tokens)
        expected = torch.stack([h[1:].flatten(0, 1), torch.cat([h[2], null[0], null[0]]), null[0].repeat(3, 1)])
    else:
        joined = few.sum(0) if name == "sum" else few.mean(0)
        expected = torch.stack([model.projector(joined), model.projector(one[0]), null[0]])
    torch.testing.assert_close(row_contexts(model, tokens, weights), expected, rtol=1e-5, atol=1e-6)
    if name == "concat":
        # The batch's longest row, not the longest there could be.
        assert row_contexts(model, tokens, weights[1:]).shape == (2, N, TEXT_WIDTH)


@torch.no_grad()
def test_black_is_the_encoding_of_a_black_image(models):
    model = models["black"]
    black = model.projector(tokens_of(model, torch.zeros(1, 3, 32, 32)))
    torch.testing.assert_close(model.null_context(2), black.expand(2, -1, -1))
    torch.testing.assert_close(model.null_context(1, 3 * N), black.repeat(1, 3, 1))
    pipe = ContextDiffusionPipeline.from_model(model)
    nothing, context = pipe.encode_context([[], [pictures()]])
    torch.testing.assert_close(nothing[None], black)
    assert not torch.allclose(context[None], black)
    assert black.abs().max() > 0.01 and not tiny_model().null_context(2).any()


@torch.no_grad()
def test_penultimate_is_what_the_last_layer_reads(models):
    model, seen = models["penultimate"], []
    vision = getattr(model.image_encoder, "vision_model", model.image_encoder)
    images = pictures(1)
    handle = vision.encoder.layers[-1].register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
    )
    context = model.encode_context(images)
    handle.remove()
    torch.testing.assert_close(context, model.projector(seen[0]))
    assert (context - tiny_model().encode_context(images)).abs().max() > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("name", ["sum", "concat", "penultimate"])
def test_samplers_join_as_the_model_was_trained(models, name):
    model, images = models[name], pictures(1, 3)
    expected = model.encode_context(images[0])
    assert expected.shape == (1, 3 * N if name == "concat" else N, TEXT_WIDTH)
    sampler, pipe = FlowSampler(model, steps=1), ContextDiffusionPipeline.from_model(model)
    torch.testing.assert_close(model.encode_context(images), expected)
    torch.testing.assert_close(pipe.encode_context(list(images[0])), expected)
    mean = model.encode_context(images[0], aggregation="mean")
    torch.testing.assert_close(pipe.encode_context(list(images[0]), aggregation="mean"), mean)
    made = sampler.generate(SamplingBatch((1,), pictures(1), images, ("moon",), 64))
    assert made.shape == (1, 3, 64, 64)


def test_a_pipeline_folder_keeps_the_variant(models, tmp_path):
    ContextDiffusionPipeline.from_model(models["sum"]).save_pretrained(tmp_path / "sum")
    assert ContextDiffusionPipeline.from_pretrained(tmp_path / "sum").reading == Reading.of({"aggregation": "sum"})
    # diffusers knows no processors with weights: one line says so, and nothing samples without them.
    ContextDiffusionPipeline.from_model(models["decoupled"]).save_pretrained(tmp_path / "decoupled")
    with pytest.raises(ContextDiffusionError, match="load_checkpoint"):
        ContextDiffusionPipeline.from_pretrained(tmp_path / "decoupled")


# The baseline


@torch.no_grad()
def test_the_pair_and_the_query_are_summed(models):
    model = models["prompt_diffusion"]
    query, source, target = pictures(2), pictures(2, seed=1), pictures(2, seed=2)
    stem = model.example_encoder.stem(torch.cat([source, target], dim=1))
    plain = model.layout_encoder.controlnet_cond_embedding(query)
    torch.testing.assert_close(model.encode_query(query, (source, target)), plain + stem)
    torch.testing.assert_close(model.encode_query(query), plain)
    assert stem.abs().max() > 1e-3


@torch.no_grad()
def test_the_baseline_samples_by_the_first_pair(models):
    sampler = FlowSampler(models["prompt_diffusion"], steps=2)
    assert sampler.wants_context_queries and not FlowSampler(tiny_model(prediction_type="flow")).wants_context_queries
    context, sources = pictures(1, 3, seed=1), pictures(1, 3, seed=2)

    def made(context, sources, prompts=("moon",)):
        return sampler.generate(SamplingBatch((4,), pictures(1), context, prompts, 64, sources))

    first = made(context, sources)
    torch.testing.assert_close(made(context[:, :1], sources[:, :1]), first)
    for other in (made(context.flip(1), sources), made(context, sources.flip(1)), made(None, None)):
        assert (other - first).abs().max() > 1e-4
    with pytest.raises(ContextDiffusionError, match="context_queries"):
        made(context, None)
    with pytest.raises(ContextDiffusionError, match="FlowSampler"):
        ContextDiffusionPipeline.from_model(models["prompt_diffusion"])


def test_the_baseline_takes_no_other_change():
    model = tiny_model()
    parts = {"unet": model.unet, "projector": model.projector, "layout_encoder": model.layout_encoder}
    for choice, words in (
        ({"baseline": "prompt_diffusion", "aggregation": "sum"}, "aggregation"),
        ({"baseline": "prompt_diffusion", "layout": "t2i_adapter"}, "layout"),
    ):
        with pytest.raises(ContextDiffusionError, match=words):
            build_model(parts, ResearchSettings(**choice))
    for choice, words in (
        ({"baseline": "painter"}, "none or prompt_diffusion"),
        ({"layout": "lora"}, "controlnet, t2i_adapter"),
        ({"null_context": "grey"}, "zeros or black"),
    ):
        with pytest.raises(ContextDiffusionError, match=words):
            read_table(ResearchSettings, "diffusion", choice)


def test_a_run_does_not_go_on_from_another_variant(models):
    check_start(models["sum"], ResearchSettings(aggregation="sum"))
    check_start(models["t2i_adapter"], ResearchSettings(layout="t2i_adapter", baseline="none"))
    for name, choices in (("sum", {"aggregation": "mean"}), ("black", {"baseline": "prompt_diffusion"})):
        with pytest.raises(ContextDiffusionError, match="start_from"):
            check_start(models[name], ResearchSettings(**choices))


# Checkpoints


@torch.no_grad()
@pytest.mark.parametrize("name", VARIANTS)
def test_a_checkpoint_knows_what_it_is(models, name, tmp_path):
    model, path = models[name], tmp_path / "model.safetensors"
    save_checkpoint(model, path)
    loaded = load_checkpoint(path)
    assert type(loaded) is type(model) and loaded.reading == model.reading
    assert read_metadata(path)["variant"] == model.reading.changes
    weights = loaded.state_dict()
    assert weights.keys() == model.state_dict().keys()
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())
    batch = SamplingBatch((1,), pictures(1), pictures(1, 2), ("moon",), 64, pictures(1, 2, seed=1))
    made = [FlowSampler(one, steps=2).generate(batch) for one in (model, loaded)]
    torch.testing.assert_close(made[0], made[1], rtol=0, atol=0)
    # ComfyUI's loader reads the same lines from the header alone.
    limits = check_native_limits(model)
    assert len(limits) == (name in LIMITS) and LIMITS.get(name, "") in " ".join(limits)
    assert read_stored(path, ()).limits == limits


@pytest.mark.parametrize("name", ["decoupled", "penultimate", "black", "t2i_adapter", "prompt_diffusion"])
def test_without_research_a_file_is_refused_in_a_line_that_names_the_command(models, name, tmp_path):
    path = save_checkpoint(models[name], tmp_path / "model.safetensors")
    code = (
        "from context_diffusion.checkpoint.stored import read_stored\n"
        "from context_diffusion import ContextDiffusionError, load_checkpoint\n"
        "import sys\n"
        "for read in (load_checkpoint, read_stored):\n"
        "    try:\n"
        "        read(sys.argv[1])\n"
        "    except ContextDiffusionError as error:\n"
        "        print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert len(lines) == 2 and all(str(path) in line and "`python -m research COMMAND`" in line for line in lines)


def test_a_default_file_says_nothing_of_variants(tmp_path):
    path = save_checkpoint(tiny_model(), tmp_path / "model.safetensors")
    with safe_open(path, "pt") as file:
        config = json.loads(file.metadata()["context_diffusion.config"])
    assert "variant" not in config and "class" not in config["layout_encoder"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c.update(variant={"aggregation": "max"}), "aggregation is 'max'"),
        (lambda c: c.update(variant={"quantum": "on"}), "entries unknown here: quantum"),
        (lambda c: c.update(variant=3), "the variant is 3"),
        (lambda c: c.update(variant={}), "does not hold the tensors|does not know"),
        (lambda c: c["layout_encoder"].update({"class": "VAE"}), "of class 'VAE', not ControlNetModel or T2IAdapter"),
        (lambda c: c.update(memory={"width": 3}), "a part unknown here, memory"),
    ],
)
def test_a_file_of_an_unknown_variant_is_refused(models, change, words, tmp_path):
    path = save_checkpoint(models["decoupled"], tmp_path / "model.safetensors")
    with safe_open(path, "pt") as file:
        metadata = dict(file.metadata())
        del metadata["context_diffusion.crc32"]
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    config = json.loads(metadata["context_diffusion.config"])
    change(config)
    save_file(tensors, path, metadata | {"context_diffusion.config": json.dumps(config)})
    with pytest.raises(ContextDiffusionError, match=words) as caught:
        load_checkpoint(path)
    assert "\n" not in str(caught.value) and path.name in str(caught.value)
