"""The networks inside MODEL and CONTROL_NET, run once on random input, and what they are made of."""

from __future__ import annotations

import uuid
from pathlib import Path

import comfy.model_management
import folder_paths
import torch
from comfy_api.latest import io
from safetensors.torch import save_file


class ProbeNetworks(io.ComfyNode):
    """One call of a UNet with and without its ControlNet; inputs and outputs go to a file as `ProbeSave`'s do."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ProbeNetworks",
            category="probes",
            inputs=[
                io.Model.Input("model"),
                io.ControlNet.Input("control_net"),
                io.Int.Input("tokens"),
                io.Int.Input("height"),
                io.Int.Input("width"),
                io.String.Input("percents", default="0.1 0.6"),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls, model: object, control_net: object, tokens: int, height: int, width: int, percents: str
    ) -> io.NodeOutput:
        network, generator = model.model, torch.Generator().manual_seed(0)
        sampling = network.model_sampling
        sigma = torch.tensor([sampling.percent_to_sigma(float(percent)) for percent in percents.split()])
        channels, wide = network.latent_format.latent_channels, network.model_config.unet_config["context_dim"]
        x = torch.randn(len(sigma), channels, height, width, generator=generator)
        y = torch.randn(len(sigma), tokens, wide, generator=generator)
        hint = torch.rand(len(sigma), 3, 8 * height, 8 * width, generator=generator)
        control = control_net.copy().set_cond_hint(hint, 1.0, (0.0, 1.0))
        comfy.model_management.load_models_gpu([model, *control.get_models()])
        control.pre_run(network, sampling.percent_to_sigma)

        def residuals() -> dict[str, list[torch.Tensor]]:
            return control.get_control(x, sigma, {"c_crossattn": y}, 1, {})

        found = {"x": x, "y": y, "hint": hint, "sigma": sigma, "sigmas": sampling.sigmas}
        found["denoised"] = network.apply_model(x, sigma, c_crossattn=y)
        for kind, tensors in residuals().items():
            found |= {f"{kind}.{number}": tensor for number, tensor in enumerate(tensors) if tensor is not None}
        # The UNet takes residuals off the lists that it is given.
        found["denoised_with_control"] = network.apply_model(x, sigma, c_crossattn=y, control=residuals())
        control.cleanup()
        name = f"probe-{uuid.uuid4().hex}.safetensors"
        tensors = {key: tensor.detach().cpu().clone().contiguous() for key, tensor in found.items()}
        save_file(tensors, Path(folder_paths.get_output_directory()) / name)
        return io.NodeOutput(ui={"file": [name]})


class ProbeMadeOf(io.ComfyNode):
    """What the six objects of a loader are: dtypes of their weights, preview colors, whether they can be reloaded."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ProbeMadeOf",
            category="probes",
            inputs=[
                io.Model.Input("model"),
                io.Clip.Input("clip"),
                io.Vae.Input("vae"),
                io.ClipVision.Input("clip_vision"),
                io.StyleModel.Input("style_model"),
                io.ControlNet.Input("control_net"),
            ],
            is_output_node=True,
        )

    @classmethod
    def fingerprint_inputs(cls, **parts: object) -> str:
        """Another one each time: old hosts tell nothing of an output node whose result is cached."""
        return uuid.uuid4().hex

    @classmethod
    def execute(cls, **parts: object) -> io.NodeOutput:
        model, clip, vae = parts["model"], parts["clip"], parts["vae"]
        modules = {
            "model": model.model.diffusion_model,
            "clip": clip.cond_stage_model,
            "vae": vae.first_stage_model,
            "clip_vision": parts["clip_vision"].model,
            "style_model": parts["style_model"].model,
            "control_net": parts["control_net"].control_model,
        }
        dtypes = {
            name: " ".join(sorted({str(weight.dtype).removeprefix("torch.") for weight in module.parameters()}))
            for name, module in modules.items()
        }
        latents, reloaded = model.model.latent_format, {}
        for name, patcher in {"model": model, "clip": clip.patcher, "vae": vae.patcher}.items():
            make, arguments = patcher.cached_patcher_init[:2]
            again, now = make(*arguments).model.state_dict(), patcher.model.state_dict()
            reloaded[name] = again.keys() == now.keys() and all(torch.equal(again[key], now[key]) for key in now)
        found = {
            "dtypes": dtypes,
            "reloaded": reloaded,
            "manual_cast": str(model.model.manual_cast_dtype),
            "latent": [latents.latent_channels, latents.scale_factor, vae.latent_channels],
            "preview": [latents.latent_rgb_factors, latents.latent_rgb_factors_bias],
            "style_model": [getattr(parts["style_model"].model, name, None) for name in _STYLE_MODEL],
        }
        return io.NodeOutput(ui={"found": [found]})


_STYLE_MODEL = ("n_tokens", "vision_width", "text_width")

NODES = [ProbeNetworks, ProbeMadeOf]
