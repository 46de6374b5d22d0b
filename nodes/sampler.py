"""Sampling with a scale for the text and a scale for the visual context."""

from __future__ import annotations

from comfy_api.latest import io

from .category import CATEGORY

_SCALE = {"default": 3.0, "min": 0.0, "max": 100.0, "step": 0.1, "round": 0.01}
_ALIASES = ["context diffusion", "guidance", "cfg", "dual cfg", "visual context", "in-context", "style"]


def _conditioning_inputs() -> list[io.Input]:
    return [
        io.Model.Input("model", tooltip="The model that denoises: MODEL of Load Context Diffusion, with any patches."),
        io.Conditioning.Input(
            "positive", tooltip="What the image should be: positive of Combine Text and Visual Context."
        ),
        io.Conditioning.Input("negative", tooltip="What to steer away from: negative of the same node."),
    ]


def _context_only_input() -> io.Input:
    return io.Conditioning.Input(
        "context_only",
        optional=True,
        tooltip="The visual context without the text: context_only of the same node. Needed only where the two scales "
        "differ; it costs a third branch, in the same model call.",
    )


def _scale_inputs() -> list[io.Input]:
    return [
        io.Float.Input(
            "text_guidance_scale",
            **_SCALE,
            tooltip="How strongly the prompt is followed. 1 means no guidance by the prompt; higher follows it more "
            "literally.",
        ),
        io.Float.Input(
            "context_guidance_scale",
            **_SCALE,
            tooltip="How strongly the context images are followed. 1 means no guidance by them. Equal to the text "
            "scale, both are ordinary guidance with that scale (cfg).",
        ),
    ]


def _make_guider(model, positive, negative, context_only, text_guidance_scale, context_guidance_scale):
    from ..context_diffusion.errors import ContextDiffusionError
    from .fits import check_conditionings
    from .native.guider import make_guider

    if context_only is None and text_guidance_scale != context_guidance_scale:
        raise ContextDiffusionError(
            f"text_guidance_scale is {text_guidance_scale:g} and context_guidance_scale is "
            f"{context_guidance_scale:g}, but nothing is connected to context_only: connect context_only of Combine "
            f"Text and Visual Context to it, or set both scales to the same number"
        )
    check_conditionings(model, positive=positive, negative=negative, context_only=context_only)
    return make_guider(model, positive, negative, context_only, text_guidance_scale, context_guidance_scale)


class ContextDiffusionSampler(io.ComfyNode):
    """The host's sampling with guidance by text and by context."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        import comfy.samplers

        return io.Schema(
            node_id="ContextDiffusionSampler",
            display_name="Context Diffusion Sampler",
            category=CATEGORY,
            description="Denoises a latent with one scale for the prompt and one for the context images. With equal "
            "scales it gives what KSampler gives.",
            search_aliases=[*_ALIASES, "ksampler", "sampler", "generate"],
            inputs=[
                *_conditioning_inputs(),
                io.Latent.Input(
                    "latent_image",
                    tooltip="The latent to denoise: an empty one, or an encoded image with denoise below 1 "
                    "(image-to-image), or one with a noise mask (inpainting).",
                ),
                _context_only_input(),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=True,
                    tooltip="The noise to start from: the same seed gives the same image.",
                ),
                io.Int.Input(
                    "steps", default=20, min=1, max=10000, tooltip="How many denoising steps; more take longer."
                ),
                *_scale_inputs(),
                io.Combo.Input(
                    "sampler_name",
                    options=comfy.samplers.KSampler.SAMPLERS,
                    default="lcm",
                    advanced=True,
                    tooltip="The algorithm that steps from noise to image. lcm gives the bundled model its evenest "
                    "colors; euler and dpmpp_2m fit checkpoints made from Stable Diffusion.",
                ),
                io.Combo.Input(
                    "scheduler",
                    options=comfy.samplers.KSampler.SCHEDULERS,
                    default="simple",
                    advanced=True,
                    tooltip="How the noise is spread over the steps. simple fits the bundled model.",
                ),
                io.Float.Input(
                    "denoise",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="How much of latent_image is made anew: 1 all of it, lower keeps its structure.",
                ),
            ],
            outputs=[io.Latent.Output(tooltip="The denoised latent, for VAE Decode.")],
        )

    @classmethod
    def execute(
        cls,
        model,
        positive,
        negative,
        latent_image,
        seed,
        steps,
        text_guidance_scale,
        context_guidance_scale,
        sampler_name,
        scheduler,
        denoise,
        context_only=None,
    ) -> io.NodeOutput:
        import comfy.samplers
        from comfy_extras.nodes_custom_sampler import Noise_RandomNoise, SamplerCustomAdvanced

        from .fits import check_latent, check_queries

        guider = _make_guider(model, positive, negative, context_only, text_guidance_scale, context_guidance_scale)
        check_latent(model, latent_image)
        check_queries(latent_image, positive=positive, negative=negative, context_only=context_only)
        # KSampler's own sigmas: it knows what denoise and each sampler do to them.
        sigmas = comfy.samplers.KSampler(
            model, steps, model.load_device, sampler_name, scheduler, denoise, model.model_options
        ).sigmas
        sampler = comfy.samplers.sampler_object(sampler_name)
        denoised, _ = SamplerCustomAdvanced.execute(
            Noise_RandomNoise(seed), guider, sampler, sigmas, latent_image
        ).result
        return io.NodeOutput(denoised)


class ContextDiffusionGuider(io.ComfyNode):
    """The guidance alone, for the host's custom sampling."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ContextDiffusionGuider",
            display_name="Context Diffusion Guider",
            category=CATEGORY,
            description="Guidance with one scale for the prompt and one for the context images, for "
            "SamplerCustomAdvanced. With equal scales it is CFGGuider.",
            search_aliases=_ALIASES,
            inputs=[*_conditioning_inputs(), _context_only_input(), *_scale_inputs()],
            outputs=[io.Guider.Output(tooltip="For the guider input of SamplerCustomAdvanced.")],
        )

    @classmethod
    def execute(
        cls, model, positive, negative, text_guidance_scale, context_guidance_scale, context_only=None
    ) -> io.NodeOutput:
        return io.NodeOutput(
            _make_guider(model, positive, negative, context_only, text_guidance_scale, context_guidance_scale)
        )


NODES = [ContextDiffusionSampler, ContextDiffusionGuider]
