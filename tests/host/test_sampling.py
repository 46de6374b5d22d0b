"""Our sampler and guider against the host's, through the server."""

from __future__ import annotations

import re

import pytest
import torch

from .graph import SamplingGraph, calls, relative
from .server import NodeError, Server

SAMPLERS = [
    ("lcm", "simple", 1.0),  # the default: goes on from the denoised latent with new noise
    ("euler", "simple", 1.0),
    ("dpmpp_2m", "karras", 1.0),
    ("dpm_2", "normal", 1.0),  # leaves the last sigma but one out
    ("uni_pc", "sgm_uniform", 1.0),
    ("euler_ancestral", "beta", 1.0),  # draws noise at every step
    ("euler_cfg_pp", "simple", 1.0),  # reads the negative prediction after guidance
    ("ddim", "ddim_uniform", 0.6),
    ("euler", "simple", 0.3),
]


@pytest.mark.parametrize("third", [False, True], ids=["two inputs", "three inputs"])
def test_equal_scales_are_ksampler(host: Server, third: bool) -> None:
    graph = SamplingGraph(host)
    graph.latent = graph.encoded(1)
    nodes = {}
    for sampler_name, scheduler, denoise in SAMPLERS:
        settings = {"sampler_name": sampler_name, "scheduler": scheduler, "denoise": denoise}
        name = f"{sampler_name} {denoise}"
        nodes[f"ours {name}"] = graph.ours(2.5, 2.5, third, **settings)
        nodes[f"host {name}"] = graph.ksampler(2.5, **settings)
    latents = graph.latents(**nodes)
    for name in latents:
        if name.startswith("ours"):
            assert torch.equal(latents[name], latents[name.replace("ours", "host")]), name
            assert latents[name].isfinite().all(), name


@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_equal_scales_of_one_branch_are_ksampler(host: Server, scale: float) -> None:
    graph = SamplingGraph(host)
    graph.model, tag = graph.counted()
    ours = graph.latents(ours=graph.ours(scale, scale))["ours"]
    counted = calls(host, tag)
    graph = SamplingGraph(host)
    graph.model, tag = graph.counted()
    assert torch.equal(ours, graph.latents(host=graph.ksampler(scale))["host"])
    assert counted == calls(host, tag) and len(counted) == 4


def test_guider_is_the_sampler_and_the_hosts_guider(host: Server) -> None:
    graph = SamplingGraph(host)
    native = graph.add("CFGGuider", model=graph.model, positive=graph.positive, negative=graph.negative, cfg=3.0)
    latents = graph.latents(
        native=graph.custom(native[0]),
        guider=graph.custom(graph.guider()[0]),
        unconnected=graph.custom(graph.guider(third=False)[0]),
        sampler=graph.ours(),
        guider_three=graph.custom(graph.guider(4.0, 2.0)[0]),
        sampler_three=graph.ours(4.0, 2.0),
    )
    for name in ("guider", "unconnected", "sampler"):
        assert torch.equal(latents[name], latents["native"]), name
    assert torch.equal(latents["guider_three"], latents["sampler_three"])
    assert relative(latents["sampler_three"], latents["native"]) > 0.01


@pytest.mark.parametrize("text, context", [(4.0, 2.0), (1.0, 3.0), (2.0, 5.5), (0.5, 0.25)])
def test_three_branches_follow_the_formula(host: Server, text: float, context: float) -> None:
    # The host's dual guider computes e0 + g_ctx (eV - e0) + g_txt (ec - eV), step by step as written here.
    graph = SamplingGraph(host)
    dual = graph.add(
        "DualCFGGuider", model=graph.model, cond1=graph.positive, cond2=graph.context_only, negative=graph.negative,
        cfg_conds=text, cfg_cond2_negative=context, style="regular",
    )  # fmt: skip
    latents = graph.latents(ours=graph.ours(text, context), dual=graph.custom(dual[0]))
    assert relative(latents["ours"], latents["dual"]) < 1e-4


def test_scales_that_need_two_branches_are_ksampler_on_them(host: Server) -> None:
    graph = SamplingGraph(host)
    latents = graph.latents(
        no_context=graph.ours(4.0, 1.0),
        no_context_host=graph.ksampler(4.0, negative=graph.context_only),
        no_text=graph.ours(0.0, 3.0),
        no_text_host=graph.ksampler(3.0, positive=graph.context_only),
        context_alone=graph.ours(0.0, 1.0),
        context_alone_host=graph.ksampler(1.0, positive=graph.context_only),
    )
    for name in ("no_context", "no_text", "context_alone"):
        assert torch.equal(latents[name], latents[f"{name}_host"]), name


@pytest.mark.parametrize(
    "text, context, rows",
    [(3.0, 3.0, 2), (3.0, 2.0, 3), (3.0, 1.0, 2), (0.0, 3.0, 2), (1.0, 1.0, 1)],
)
def test_one_model_call_a_step(host: Server, text: float, context: float, rows: int) -> None:
    # With context, query and prompt: the branches differ in everything, and share their lengths and the control model.
    graph = SamplingGraph(host)
    graph.context_conditionings()
    graph.model, tag = graph.counted()
    graph.save(graph.ours(text, context, steps=5)[0])
    host.run(graph)
    assert calls(host, tag) == [rows] * 5


def test_functions_of_other_nodes_see_three_branches(host: Server) -> None:
    graph = SamplingGraph(host)
    plain = graph.ours(4.0, 2.0)
    taps, seen = {}, {}
    for replace in (False, True):
        tag = f"hooks-{host.port}-{replace}"
        model = graph.add("ProbeHooks", model=graph.model, tag=tag, replace=replace)
        taps[replace] = graph.custom(graph.guider(4.0, 2.0, model=model[0])[0])
        seen[replace] = graph.save(graph.add("ProbeHooked", after=taps[replace][0], tag=tag)[0])
    finals = {replace: graph.save(node[1]) for replace, node in taps.items()}
    probes = {replace: graph.save(node[0]) for replace, node in taps.items()}
    expected = graph.save(plain[0])
    history = host.run(graph)
    for replace in (False, True):
        hooked = host.tensors(history, seen[replace])
        # Guidance replaced by the same arithmetic: the same result to rounding. Otherwise exactly the same.
        difference = relative(graph.read(history, probes[replace]), graph.read(history, expected))
        assert difference < 1e-4 if replace else difference == 0.0
        assert hooked["pre.scale"] == hooked["post.scale"] == 4.0
        assert {name for name in hooked if name.startswith("pre.")} == {"pre.0", "pre.1", "pre.scale"}
        assert torch.equal(hooked["pre.0"], hooked["post.cond_denoised"])
        assert torch.equal(hooked["pre.1"], hooked["post.uncond_denoised"])
        # What the functions after guidance get is the finished prediction: the last step's output, which comes out
        # of the sampler with the latent format's factor taken off.
        final = graph.read(history, finals[replace])
        finished = hooked["post.denoised"]
        assert relative(finished * (final.norm() / finished.norm()), final) < 1e-5


def test_a_scale_override_holds_for_both(host: Server) -> None:
    if "CFGOverride" not in host.get("/object_info"):
        pytest.skip("this ComfyUI has no CFGOverride")
    graph = SamplingGraph(host)
    graph.model = graph.add("CFGOverride", model=graph.model, cfg=1.0, start_percent=0.0, end_percent=1.0)[0]
    latents = graph.latents(ours=graph.ours(4.0, 2.0), host=graph.ksampler(4.0))
    assert torch.equal(latents["ours"], latents["host"])


def test_noise_mask_keeps_the_rest(host: Server) -> None:
    graph = SamplingGraph(host)
    start = graph.encoded(1)
    full = graph.add("SolidMask", value=0.0, width=128, height=128)
    part = graph.add("SolidMask", value=1.0, width=64, height=128)
    mask = graph.add("MaskComposite", destination=full[0], source=part[0], x=64, y=0, operation="add")
    graph.latent = graph.add("SetLatentNoiseMask", samples=start, mask=mask[0])[0]
    original = graph.save(start)
    samplers = {"two": graph.ours(), "host": graph.ksampler(), "three": graph.ours(4.0, 2.0)}
    probes = {name: graph.save(node[0]) for name, node in samplers.items()}
    history = host.run(graph)
    start_latent = graph.read(history, original)
    latents = {name: graph.read(history, probe) for name, probe in probes.items()}
    assert torch.equal(latents["two"], latents["host"])
    for name in ("two", "three"):
        assert relative(latents[name][..., :8], start_latent[..., :8]) < 1e-5, name
        assert relative(latents[name][..., 8:], start_latent[..., 8:]) > 0.1, name


def test_denoise_below_one_keeps_the_structure(host: Server) -> None:
    graph = SamplingGraph(host)
    start = graph.latent = graph.encoded(1)
    original = graph.save(start)
    amounts = (0.0, 0.25, 0.75)
    ours = {amount: graph.save(graph.ours(4.0, 2.0, steps=8, denoise=amount)[0]) for amount in amounts}
    history = host.run(graph)
    before = graph.read(history, original)
    moved = [(graph.read(history, probe) - before).square().mean().item() for probe in ours.values()]
    assert moved[0] == 0.0
    assert moved[0] < moved[1] < moved[2]


def test_batches_and_their_indices(host: Server) -> None:
    graph = SamplingGraph(host, batch_size=2)
    both = graph.latent
    second = graph.add("LatentFromBatch", samples=both, batch_index=1, length=1)[0]
    latents = graph.latents(
        two=graph.ours(),
        host=graph.ksampler(),
        three=graph.ours(4.0, 2.0),
        second=graph.ours(4.0, 2.0, latent_image=second),
    )
    assert torch.equal(latents["two"], latents["host"])
    assert latents["three"].shape == (2, 8, 16, 16)
    assert relative(latents["three"][0], latents["three"][1]) > 0.1
    # One image of a batch, made alone: the same noise, and the same sums in another order.
    assert relative(latents["second"][0], latents["three"][1]) < 1e-3


def test_areas(host: Server) -> None:
    graph = SamplingGraph(host)
    left = graph.positive
    right = graph.add(
        "ConditioningSetArea", conditioning=graph.text("a yellow moon"), width=64, height=128, x=64, y=0,
        strength=1.0,
    )  # fmt: skip
    plain = graph.ours(4.0, 2.0)
    graph.positive = graph.add("ConditioningCombine", conditioning_1=left, conditioning_2=right[0])[0]
    latents = graph.latents(plain=plain, two=graph.ours(), host=graph.ksampler(), three=graph.ours(4.0, 2.0))
    assert torch.equal(latents["two"], latents["host"])
    assert latents["three"].isfinite().all()
    assert relative(latents["three"], latents["plain"]) > 0.01


def test_context_only_is_asked_for(host: Server) -> None:
    for node in ("ours", "guider"):
        graph = SamplingGraph(host)
        made = getattr(graph, node)(4.0, 2.0, third=False)
        graph.save(made[0] if node == "ours" else graph.custom(made[0])[0])
        with pytest.raises(NodeError, match="connect context_only of Combine Text and Visual Context") as caught:
            host.run(graph)
        assert "text_guidance_scale is 4 and context_guidance_scale is 2" in caught.value.message
        assert caught.value.node_type == f"ContextDiffusion{'Sampler' if node == 'ours' else 'Guider'}"


@pytest.mark.parametrize("which", ["positive", "negative", "context_only"])
def test_text_of_another_family_is_refused_before_sampling(host: Server, which: str) -> None:
    graph = SamplingGraph(host)
    graph.model, tag = graph.counted()
    setattr(graph, which, graph.add("ProbeConditioning", width=768, tokens=77)[0])
    graph.save(graph.ours(4.0, 2.0)[0])
    with pytest.raises(NodeError, match=f"{which} is 768 numbers wide, .* width 192") as caught:
        host.run(graph)
    assert caught.value.node_type == "ContextDiffusionSampler"
    assert calls(host, tag) == []


def test_a_conditioning_without_text_is_refused_before_sampling(host: Server) -> None:
    graph = SamplingGraph(host)
    graph.positive = graph.add("ProbeConditioning", width=192, tokens=0)[0]
    graph.save(graph.custom(graph.guider()[0])[0])
    with pytest.raises(NodeError, match="positive holds NoneType, expected text tokens") as caught:
        host.run(graph)
    assert caught.value.node_type == "ContextDiffusionGuider"


@pytest.mark.parametrize(
    "other, words",
    [
        ({"latent_channels": 8, "channels": 32, "levels": 3, "context_width": 192}, "layers of width"),
        ({"latent_channels": 8, "channels": 64, "levels": 3, "context_width": 768}, "layers of width"),
        ({"latent_channels": 4, "channels": 64, "levels": 3, "context_width": 192}, "latent channels"),
        ({"latent_channels": 8, "channels": 64, "levels": 4, "context_width": 192}, "input blocks"),
    ],
    ids=["channels", "text width", "latents", "levels"],
)
@pytest.mark.parametrize("under", [False, True], ids=["alone", "under another"])
def test_a_control_model_of_another_unet_is_refused_before_sampling(
    host: Server, other: dict, words: str, under: bool
) -> None:
    graph = SamplingGraph(host)
    graph.model, tag = graph.counted()
    stranger = graph.add("ProbeControlNet", **other)[0]
    for control_net in [stranger, graph.control_net] if under else [stranger]:
        applied = graph.add(
            "ControlNetApplyAdvanced", positive=graph.positive, negative=graph.negative, control_net=control_net,
            image=graph.image(3), strength=1.0, start_percent=0.0, end_percent=1.0,
        )  # fmt: skip
        graph.positive, graph.negative = applied[0], applied[1]
    graph.save(graph.custom(graph.guider()[0])[0])
    with pytest.raises(NodeError, match=f"positive was made for another UNet.*{words}") as caught:
        host.run(graph)
    assert caught.value.node_type == "ContextDiffusionGuider"
    assert calls(host, tag) == []


@pytest.mark.parametrize(
    ("latent", "words"),
    [
        ({"channels": 4}, "has the shape (1, 4, 16, 16) of another VAE"),
        ({"channels": 16}, "has the shape (1, 16, 16, 16) of another VAE"),
        ({"channels": 8, "frames": 2}, "has the shape (1, 8, 2, 16, 16) of a video"),
        ({"channels": 16, "frames": 2, "kind": "empty"}, "has the shape (1, 16, 2, 16, 16) of a video"),
        ({"channels": 8, "kind": "audio"}, "has the shape (1, 8, 16, 16) of audio"),
        ({"channels": 8, "kind": "nested"}, "holds several latents in one"),
        ({"channels": 8, "kind": "list"}, "holds list"),
    ],
)
def test_latents_of_no_picture_or_another_vae_are_refused(host: Server, latent: dict, words: str) -> None:
    graph = SamplingGraph(host)
    graph.model, tag = graph.counted()
    graph.latent = graph.add("ProbeLatent", {"frames": 0, **latent})[0]
    graph.save(graph.ours(4.0, 2.0)[0])
    with pytest.raises(NodeError, match=re.escape(words) + r".*takes latents \(batch, 8, ") as caught:
        host.run(graph)
    assert caught.value.node_type == "ContextDiffusionSampler"
    assert "Connect the VAE that belongs to this MODEL" in caught.value.message
    assert calls(host, tag) == []


# Who has a range, and what the steps outside of it are: ordinary guidance of two of the others, of one without a scale.
ABSENT = [
    (("context_only",), 4.0, 2.0, ("positive", "negative", 4.0)),
    (("positive",), 4.0, 2.0, ("context_only", "negative", 2.0)),
    (("negative",), 4.0, 2.0, ("positive", "context_only", 4.0)),
    (("positive", "context_only"), 4.0, 2.0, ("negative", "negative", 1.0)),
    (("positive", "negative"), 4.0, 2.0, ("context_only", "negative", 1.0)),
    (("context_only", "negative"), 4.0, 2.0, ("positive", "negative", 1.0)),
    (("positive",), 3.0, 3.0, ("context_only", "negative", 3.0)),
    (("negative",), 3.0, 3.0, ("positive", "context_only", 3.0)),
    (("negative",), 1.0, 0.0, ("positive", "context_only", 1.0)),
]


@pytest.mark.parametrize("late", [True, False], ids=["first half", "second half"])
def test_steps_that_a_range_leaves_out_go_by_the_other_branches(host: Server, late: bool) -> None:
    # Euler has no memory: the half with all branches is the host's dual guider, the other half the host's of two.
    span = {"start": 0.4, "end": 1.0} if late else {"start": 0.0, "end": 0.4}
    graph = SamplingGraph(host)
    sigmas = graph.add("BasicScheduler", model=graph.model, scheduler="simple", steps=4, denoise=1.0)
    halves = graph.add("SplitSigmas", sigmas=sigmas[0], step=2)
    sampler = graph.add("KSamplerSelect", sampler_name="euler")[0]
    branches = {name: getattr(graph, name) for name in ("positive", "context_only", "negative")}
    ranged = {
        name: graph.add("ConditioningSetTimestepRange", conditioning=link, **span)[0] for name, link in branches.items()
    }
    nodes = {}
    for number, (absent, text, context, (first, second, scale)) in enumerate(ABSENT):
        few = graph.add(
            "CFGGuider", model=graph.model, positive=branches[first], negative=branches[second], cfg=scale,
        )  # fmt: skip
        all_three = graph.add(
            "DualCFGGuider", model=graph.model, cond1=branches["positive"], cond2=branches["context_only"],
            negative=branches["negative"], cfg_conds=text, cfg_cond2_negative=context, style="regular",
        )  # fmt: skip
        latent, noise = graph.latent, graph.add("RandomNoise", noise_seed=7)[0]
        for half, guider in enumerate((few, all_three) if late else (all_three, few)):
            step = graph.add(
                "SamplerCustomAdvanced", noise=noise, guider=guider[0], sampler=sampler, sigmas=halves[half],
                latent_image=latent,
            )  # fmt: skip
            latent, noise = step[0], graph.add("DisableNoise")[0]
        nodes[f"expected {number}"] = step
        nodes[f"ours {number}"] = graph.ours(text, context, **{name: ranged[name] for name in absent})
    latents = graph.latents(**nodes)
    for number, case in enumerate(ABSENT):
        assert relative(latents[f"ours {number}"], latents[f"expected {number}"]) < 1e-4, case


def test_a_range_costs_no_model_call(host: Server) -> None:
    graph = SamplingGraph(host)
    graph.context_conditionings()
    graph.model, tag = graph.counted()
    ranged = graph.add("ConditioningSetTimestepRange", conditioning=graph.context_only, start=0.4, end=1.0)
    graph.save(graph.ours(4.0, 2.0, context_only=ranged[0])[0])
    host.run(graph)
    assert calls(host, tag) == [2, 2, 3, 3]


@pytest.mark.parametrize("prompt", ["a red flag on a white tent", "a red flag, " * 40], ids=["equal", "longer"])
def test_attention_of_another_pack_sees_a_positive_and_a_negative(host: Server, prompt: str) -> None:
    # One Euler step down to no noise is the prediction itself, and guidance is linear in the branches' predictions.
    graph = SamplingGraph(host)
    graph.model = graph.add("ProbeAttention", model=graph.model)[0]
    graph.positive = graph.text(prompt)
    latents = graph.latents(
        ours=graph.ours(4.0, 2.5, steps=1),
        full=graph.ksampler(1.0, steps=1),
        context_only=graph.ksampler(1.0, steps=1, positive=graph.context_only),
        null=graph.ksampler(0.0, steps=1),
    )
    expected = 4.0 * latents["full"] - 1.5 * latents["context_only"] - 1.5 * latents["null"]
    assert relative(latents["ours"], expected) < 1e-4
