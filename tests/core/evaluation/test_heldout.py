"""The held-out protocol: what is drawn, what survives a kill, and the plain sampler against its formula."""

from types import SimpleNamespace

import pytest
import torch

from context_diffusion.errors import ContextDiffusionError
from context_diffusion.evaluation.heldout import generate_heldout, load_images, protocol_chunks
from context_diffusion.evaluation.protocol import PARTS, contexts, heldout_cases, truths
from context_diffusion.evaluation.tables import format_figure, markdown
from context_diffusion.sampling.flow import FlowSampler, SamplingBatch

from ..tiny import IMAGE_SIZE, tiny_model
from .protocol_stand_ins import Echo, IdentityVAE, Library


@pytest.fixture
def cases():
    return heldout_cases(Library(), seen=12, unseen=5, transforms=6)


def run(cases, out, sampler=None, **options):
    sampler = sampler or Echo()
    options = {"fingerprint": "a", "seeds": 2, "batch_size": 4, **options}
    return sampler, generate_heldout(IdentityVAE(), sampler, Library(), cases, out, **options)


def test_cases_are_held_out_fixed_and_never_leak_their_target(cases):
    assert [sum(case.part == part for case in cases) for part in PARTS] == [12, 5, 6]
    assert cases == heldout_cases(Library(), seen=12, unseen=5, transforms=6)
    for case in cases:
        assert case.key not in case.context
        assert len(set(case.context)) == 3
        assert {case.key, *case.context} <= set(Library.everything[::3])
        assert case.other_style != case.style
        assert all(Library().has(case.other_style, key) for key in case.context)
        assert (case.style in Library.heldout_styles) == (case.part == "unseen")
        assert (case.transform is not None) == (case.part == "transforms")
    with pytest.raises(ContextDiffusionError, match="ask for fewer"):
        heldout_cases(Library(), seen=60)


def test_context_is_often_of_the_targets_group():
    library = Library()

    def share(group_share):
        drawn = heldout_cases(library, seen=36, unseen=12, transforms=0, group_share=group_share)
        hits = [library.group(one) == library.group(case.key) for case in drawn for one in case.context]
        return sum(hits) / len(hits)

    assert share(1.0) == 1 and share(0.0) < share(0.7)


def test_shuffled_context_is_the_same_content_in_another_style(cases):
    case = cases[0]
    right, wrong = contexts(Library(), [case]), contexts(Library(), [case], shuffled=True)
    difference = (Library.styles.index(case.other_style) - Library.styles.index(case.style)) * 0.2
    assert torch.allclose(wrong - right, torch.full_like(right, difference), atol=1e-6)
    moved = [case for case in cases if case.part == "transforms"][:1]
    assert not torch.allclose(truths(Library(), moved), Library().batch(moved[0].style, [moved[0].key]))


def test_settings_ask_for_what_they_say_from_the_same_noise(cases, tmp_path):
    sampler, complete = run(cases, tmp_path, seeds=1, batch_size=64)
    assert complete
    cp, c, p, shuffled, query_only = sampler.asked[:5]
    assert [b.context is not None for b in (cp, c, p, shuffled, query_only)] == [
        True,
        True,
        False,
        True,
        False,
    ]
    assert [b.prompts is not None for b in (cp, c, p, shuffled, query_only)] == [
        True,
        False,
        True,
        False,
        False,
    ]
    assert all(b.query is not None and b.seeds == cp.seeds for b in sampler.asked[:5])
    assert len(set(cp.seeds)) == 12
    assert torch.equal(c.context, cp.context) and not torch.equal(c.context, shuffled.context)
    assert len(sampler.asked) == 5 + 5 + 3


def test_a_killed_run_goes_on_and_shards_share_the_work(cases, tmp_path):
    whole, _ = run(cases, tmp_path / "whole")

    class Killed(Echo):
        def generate(self, batch):
            if len(self.asked) == 3:
                raise KeyboardInterrupt
            return super().generate(batch)

    with pytest.raises(KeyboardInterrupt):
        run(cases, tmp_path / "parts", Killed())
    first, complete = run(cases, tmp_path / "parts", shard=(0, 2))
    assert not complete
    second, complete = run(cases, tmp_path / "parts", shard=(1, 2))
    assert complete
    assert 3 + len(first.asked) + len(second.asked) == len(whole.asked)
    for chunk in protocol_chunks(cases, 2, 4):
        assert chunk.path(tmp_path / "whole").read_bytes() == chunk.path(tmp_path / "parts").read_bytes()
    images = load_images(tmp_path / "parts", cases, "seen", "c", 1, 4)
    assert images.shape == (12, 3, 16, 16) and images.dtype == torch.uint8
    vae = load_images(tmp_path / "parts", cases, "unseen", "vae", 0, 4)
    unseen = truths(Library(), [case for case in cases if case.part == "unseen"])
    assert torch.equal(vae, (unseen * 255).round().to(torch.uint8))
    with pytest.raises(ContextDiffusionError, match="holds results of another run"):
        run(cases, tmp_path / "parts", fingerprint="b")
    with pytest.raises(ContextDiffusionError, match="lacks 3 of 3 files"):
        load_images(tmp_path / "parts", cases, "seen", "c", 2, 4)


@pytest.mark.parametrize("name", ["lcm", "euler"])
def test_flow_sampler_is_guided_and_batches_equal_singles(name):
    model = tiny_model(prediction_type="flow")
    generator = torch.Generator().manual_seed(0)
    query = torch.rand(2, 3, IMAGE_SIZE, IMAGE_SIZE, generator=generator)
    context = torch.rand(2, 2, 3, 40, 40, generator=generator)
    prompts = ("a red flag", "the moon")
    sampler = FlowSampler(model, steps=2, text_guidance=3.0, context_guidance=2.0, sampler=name)
    both = sampler.generate(SamplingBatch((5, 6), query, context, prompts, IMAGE_SIZE))
    single = sampler.generate(SamplingBatch((6,), query[1:], context[1:], prompts[1:], IMAGE_SIZE))
    assert torch.allclose(both[1:], single, atol=1e-4)
    noise = torch.Generator().manual_seed(6)
    z = torch.randn((4, 8, 8), generator=noise)[None]
    text, null_text = model.encode_prompts([prompts[1]]), model.encode_prompts([""])
    seen = model.encode_context(context[1])
    for s in (1.0, 0.5):
        t = torch.tensor([1000.0 * s])
        full = model.predict(z, t, torch.cat([text, seen], 1), query[1:])
        middle = model.predict(z, t, torch.cat([null_text, seen], 1), query[1:])
        nothing = model.predict(z, t, torch.cat([null_text, torch.zeros_like(seen)], 1), query[1:])
        guided = nothing + 2.0 * (middle - nothing) + 3.0 * (full - middle)
        # Half a step of the flow is left after s = 0.5, and the predicted image is then the result.
        z = z - 0.5 * guided
        if name == "lcm" and s == 1.0:
            clean = z - 0.5 * guided
            z = 0.5 * clean + 0.5 * torch.randn((4, 8, 8), generator=noise)[None]
    assert torch.allclose(model.decode_latents(z), single, atol=1e-4)


def test_flow_sampler_without_anything_but_a_query_runs_one_branch():
    model = tiny_model(prediction_type="flow")
    calls = []
    model.unet.register_forward_hook(lambda module, inputs, output: calls.append(len(inputs[0])))
    query = torch.rand(3, 3, IMAGE_SIZE, IMAGE_SIZE)
    assert FlowSampler(model, steps=2).generate(SamplingBatch((1, 2, 3), query, size=IMAGE_SIZE)).shape[0] == 3
    assert calls == [3, 3]
    with pytest.raises(ContextDiffusionError, match="'epsilon'"):
        FlowSampler(tiny_model())
    with pytest.raises(ContextDiffusionError, match="sampler is 'ddim': give one of lcm, euler"):
        FlowSampler(model, sampler="ddim")


def test_tables_hold_every_setting_and_figure():
    figures = {
        "rmse": [0.2512, 0.2, 0.3],
        "psnr": [32.04, 31.0, 33.0],
        "color_deviation": [0.0131, 0.012, 0.014],
    }
    part = {
        "cases": 4,
        "codepoints": 3,
        "settings": {"vae": figures},
        "ratios": {"rmse c/p": [0.8, 0.7, 0.9]},
    }
    text = markdown({"protocol": {"seeds": 3}, "parts": {"seen": part}})
    assert "| setting | RMSE | color deviation | PSNR dB |" in text
    row = "| VAE alone | 0.251 [0.200, 0.300] | 0.0131 [0.0120, 0.0140] | 32.0 [31.0, 33.0] |"
    assert row in text
    assert "| rmse c/p | 0.800 [0.700, 0.900] |" in text
    assert format_figure([-0.002, -0.01, 0.006]) == "-0.0020 [-0.0100, 0.0060]"


def test_without_a_bar_the_log_says_how_far_it_is(tmp_path, monkeypatch, caplog):
    clock = iter(range(0, 100000, 40))
    monkeypatch.setattr("context_diffusion.evaluation.chunks.time", SimpleNamespace(monotonic=lambda: next(clock)))
    caplog.set_level("INFO", logger="context_diffusion")
    cases = heldout_cases(Library(), seen=12, unseen=0, transforms=0)
    run(cases, tmp_path, seeds=1, batch_size=4, progress=False)
    said = [record.getMessage() for record in caplog.records if record.getMessage().endswith(" left")]
    # 40 s pass with each of 18 chunks of 4 images: every second one says it, and 64 images at 10 s each are left first.
    assert len(said) == 9
    assert said[0] == "held-out: 8 of 72 images, 11 min left" and said[-1] == "held-out: 72 of 72 images, 0 s left"
