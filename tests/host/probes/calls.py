"""Watch and hinder the model's calls through the wrappers that the host's model patcher offers."""

from __future__ import annotations

import itertools
import time

import comfy.patcher_extension
import torch
from aiohttp import web
from comfy.ldm.modules.attention import optimized_attention
from comfy_api.latest import io
from server import PromptServer

# Tag -> what was seen. A tag is used by one prompt.
_calls: dict[str, list[int]] = {}
_guided: dict[str, dict[str, torch.Tensor]] = {}


class ProbeCountCalls(io.ComfyNode):
    """A MODEL whose UNet notes how many rows each call has, and waits a while in each."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ProbeCountCalls",
            category="probes",
            inputs=[io.Model.Input("model"), io.String.Input("tag"), io.Float.Input("wait", default=0.0)],
            outputs=[io.Model.Output()],
        )

    @classmethod
    def execute(cls, model, tag: str, wait: float) -> io.NodeOutput:
        calls = _calls[tag] = []

        def count(executor, x, *args, **kwargs):
            calls.append(x.shape[0])
            time.sleep(wait)
            return executor(x, *args, **kwargs)

        model = model.clone()
        model.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, "probe", count)
        return io.NodeOutput(model)


class ProbeAttention(io.ComfyNode):
    """A MODEL whose cross-attention another pack replaced: it looks up by branch what it has for two of them."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ProbeAttention",
            category="probes",
            inputs=[io.Model.Input("model")],
            outputs=[io.Model.Output()],
        )

    @classmethod
    def execute(cls, model) -> io.NodeOutput:
        of_positive_and_negative = (0.5, 1.5)

        def attend(q, k, v, extra_options):
            branches = extra_options["cond_or_uncond"]
            factors = torch.tensor([of_positive_and_negative[branch] for branch in branches])
            rows = factors.repeat_interleave(len(q) // len(branches))
            return optimized_attention(q, k, v, extra_options["n_heads"]) * rows[:, None, None].to(q)

        model = model.clone()
        for block, number in itertools.product(("input", "middle", "output"), range(12)):
            model.set_model_attn2_replace(attend, block, number)
        return io.NodeOutput(model)


@PromptServer.instance.routes.get("/probes/calls/{tag}")
async def calls(request: web.Request) -> web.Response:
    """Rows of each call so far. Not a node: a graph of its own would drop what the server has cached."""
    return web.json_response(_calls.get(request.match_info["tag"], []))


class ProbeHooks(io.ComfyNode):
    """A MODEL with functions before and after guidance that change nothing and note what they were given."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ProbeHooks",
            category="probes",
            inputs=[io.Model.Input("model"), io.String.Input("tag"), io.Boolean.Input("replace", default=False)],
            outputs=[io.Model.Output()],
        )

    @classmethod
    def execute(cls, model, tag: str, replace: bool) -> io.NodeOutput:
        seen = _guided[tag] = {}

        def before(args):
            for index, prediction in enumerate(args["conds_out"]):
                seen[f"pre.{index}"] = prediction
            seen["pre.scale"] = torch.tensor(float(args["cond_scale"]))
            return args["conds_out"]

        def after(args):
            for name in ("denoised", "cond_denoised", "uncond_denoised", "input", "sigma"):
                seen[f"post.{name}"] = args[name]
            seen["post.scale"] = torch.tensor(float(args["cond_scale"]))
            return args["denoised"]

        def guidance(args):
            return args["uncond"] + args["cond_scale"] * (args["cond"] - args["uncond"])

        model = model.clone()
        model.set_model_sampler_pre_cfg_function(before)
        model.set_model_sampler_post_cfg_function(after)
        if replace:
            model.set_model_sampler_cfg_function(guidance)
        return io.NodeOutput(model)


class ProbeHooked(io.ComfyNode):
    """What `ProbeHooks` noted last, for `ProbeSave`."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ProbeHooked",
            category="probes",
            inputs=[io.AnyType.Input("after"), io.String.Input("tag")],
            outputs=[io.AnyType.Output()],
        )

    @classmethod
    def execute(cls, after: object, tag: str) -> io.NodeOutput:
        return io.NodeOutput(dict(_guided[tag]))


class ProbeTimeSampling(io.ComfyNode):
    """Seconds of sampling: our sampler, KSampler and a bare loop over the same UNet calls, turn by turn."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ProbeTimeSampling",
            category="probes",
            inputs=[
                io.Model.Input("model"),
                io.Conditioning.Input("positive"),
                io.Conditioning.Input("negative"),
                io.Conditioning.Input("context_only"),
                io.Latent.Input("latent"),
                io.Int.Input("steps", default=20),
                io.Int.Input("rounds", default=5),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, model, positive, negative, context_only, latent, steps: int, rounds: int) -> io.NodeOutput:
        import comfy.sample

        import nodes

        # An empty latent has four channels until a sampler sees the model's number.
        latent = {**latent, "samples": comfy.sample.fix_empty_latent_channels(model, latent["samples"])}
        ours = nodes.NODE_CLASS_MAPPINGS["ContextDiffusionSampler"]
        common = {"sampler_name": "euler", "scheduler": "simple", "denoise": 1.0}

        def run_ours(text: float, context: float) -> None:
            ours.execute(
                model, positive, negative, latent, 1, steps, text, context, context_only=context_only, **common
            )

        def run_ksampler() -> None:
            nodes.common_ksampler(model, 1, steps, 3.0, "euler", "simple", positive, negative, latent)

        def run_bare(branches: int) -> None:
            unet = model.model.diffusion_model
            x = torch.randn_like(latent["samples"])
            conds = [positive, negative, context_only][:branches]
            context = torch.cat([cond[0][0].expand(x.shape[0], -1, -1) for cond in conds])
            for i in range(steps):
                t = torch.full((x.shape[0] * branches,), 1000.0 * (1 - i / steps))
                out = unet(x.repeat(branches, 1, 1, 1), t, context=context, transformer_options={}).chunk(branches)
                guided = out[1] + 3.0 * (out[0] - out[1]) if branches == 2 else sum(out) / 3
                x = x - guided / steps

        runs = {
            "ours_two": lambda: run_ours(3.0, 3.0),
            "ksampler": run_ksampler,
            "bare_two": lambda: run_bare(2),
            "ours_three": lambda: run_ours(3.0, 2.0),
            "bare_three": lambda: run_bare(3),
        }
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        for round_ in range(rounds + 1):
            for name, run in runs.items():
                start = time.perf_counter()
                run()
                if round_ > 0:  # the first warms up
                    seconds[name].append(time.perf_counter() - start)
        return io.NodeOutput(ui=seconds)


NODES = [ProbeCountCalls, ProbeAttention, ProbeHooks, ProbeHooked, ProbeTimeSampling]
