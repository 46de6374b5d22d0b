"""Sampling as a diffusers pipeline: an image from context images, a query and a prompt."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    ControlNetModel,
    DiffusionPipeline,
    ImagePipelineOutput,
    UNet2DConditionModel,
)
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer, CLIPVisionModel

from ..errors import ContextDiffusionError
from ..model.context_diffusion import ContextDiffusion
from ..model.guidance import CONTEXT_ONLY, FULL, NULL, branch_weights, guide
from ..model.latents import vae_scale_factor
from ..model.visual_context import ContextProjector, n_tokens
from ..projector import PretrainedContextProjector
from ..ranges import GUIDANCE, LAYOUT_STRENGTH, SHARE, STEPS, whole_number
from .encoding import EncodingMixin
from .inputs import Request, check_callback, check_generator, read_changes, read_images, read_prompts, spread
from .loading import LoadingMixin
from .scheduler import add_noise, check_scheduler, set_timesteps


class ContextDiffusionPipeline(LoadingMixin, DiffusionPipeline, EncodingMixin):
    """f(z_t, t, y, q) of arXiv 2312.03584 as a sampler, with every part optional that a file may leave out.

    Args:
        unet: its cross-attention reads y = [h^c, h^V], width d_c.
        projector: h^V, d_v -> d_c; any `ContextProjector`, its weights are shared.
        scheduler: any diffusers scheduler that fits what the UNet predicts, see `scheduler.make_scheduler`.
        layout_encoder: for the query q, or None.
        vae: or None, for latents only.
        text_encoder: of width d_c, or None, for prompt embeddings only.
        tokenizer: the text encoder's, or None.
        image_encoder: of width d_v, or None, for context embeddings only.
        schedule: the model's noise schedule as `ContextDiffusion.schedule`; None takes any scheduler's word
            for what the UNet predicts.
        info: title, license and the like.
        context_tokens: N, for a model without its image encoder.
        model_variant: the `changes` of the model's `Reading`.

    Raises:
        ContextDiffusionError: the UNet's cross-attention is not of this variant.
    """

    # The layout encoder takes turns with the UNet at every step: as a ControlNet it stays out of the chain.
    model_cpu_offload_seq = "text_encoder->image_encoder->projector->unet->vae"
    _optional_components = ["layout_encoder", "vae", "text_encoder", "tokenizer", "image_encoder"]
    _callback_tensor_inputs = [
        "latents",
        "prompt_embeds",
        "negative_prompt_embeds",
        "context_embeds",
        "query_map",
    ]

    def __init__(
        self,
        unet: UNet2DConditionModel,
        projector: ContextProjector | PretrainedContextProjector,
        scheduler: SchedulerMixin,
        layout_encoder: ControlNetModel | None,
        vae: AutoencoderKL | AutoencoderTiny | None,
        text_encoder: CLIPTextModel | None,
        tokenizer: CLIPTokenizer | None,
        image_encoder: CLIPVisionModel | None,
        schedule: dict | None = None,
        info: dict | None = None,
        context_tokens: int | None = None,
        model_variant: dict | None = None,
    ) -> None:
        super().__init__()
        if model_variant:
            self.register_to_config(model_variant=model_variant)
        self.register_modules(
            unet=unet,
            projector=PretrainedContextProjector.of(projector),
            scheduler=scheduler,
            layout_encoder=layout_encoder,
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            image_encoder=image_encoder,
        )
        self.reading.check(unet)
        if image_encoder is not None:
            context_tokens = n_tokens(image_encoder.config.image_size, image_encoder.config.patch_size)
        self.register_to_config(schedule=schedule, info=info, context_tokens=context_tokens)
        self.vae_scale_factor = vae_scale_factor(vae.config) if vae is not None else 8

    @property
    def text_guidance(self) -> float:
        """g_txt of the current run."""
        return self._text_guidance

    @property
    def context_guidance(self) -> float:
        """g_ctx of the current run."""
        return self._context_guidance

    @property
    def num_timesteps(self) -> int:
        """UNet steps of the current run."""
        return self._num_timesteps

    @property
    def interrupt(self) -> bool:
        """Whether a callback asked to stop: set `pipe._interrupt = True`."""
        return self._interrupt

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        context_images: object = None,
        context_weights: Sequence | Tensor | None = None,
        query_image: object = None,
        query_map: object = None,
        map_name: str = "none",
        negative_prompt: str | list[str] | None = None,
        *,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 20,
        text_guidance: float = 3.0,
        context_guidance: float = 3.0,
        aggregation: str | None = None,
        layout_strength: float = 1.0,
        layout_start: float = 0.0,
        layout_end: float = 1.0,
        image: object = None,
        strength: float = 0.8,
        num_images_per_prompt: int = 1,
        eta: float = 0.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        context_embeds: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[[object, int, Tensor, dict], dict] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> ImagePipelineOutput | tuple:
        """Make images. Each of prompt, context and query may be left out, not all of them.

        An input for several rows is a list; an input with one entry serves all rows.

        Args:
            prompt: text c.
            context_images: PIL images or tensors (3, H, W) in [0, 1], any number and any sizes: one list,
                shared by the batch, or a list of lists, one for each row.
            context_weights: one number an image, 0 to 1000.
            query_image: image whose map (`map_name`) gives the layout; cropped to the output's shape.
            query_map: the layout q itself, used as it is; in place of `query_image`.
            map_name: a key of `maps.MAPS`: none, canny, softedge, segmentation, depth, normal or scribble.
            negative_prompt: what guidance steers away from; "" when None.
            height: of the images in pixels, a multiple of the VAE's factor; the model's own size when None.
            width: likewise.
            num_inference_steps: steps of the scheduler, 1 or more.
            text_guidance: g_txt, -100 to 100; 1 means no guidance by text.
            context_guidance: g_ctx; 1 means no guidance by context.
            aggregation: how context images are joined: mean, sum or concat; as the model was trained (mean, unless it
                is an ablation) when None.
            layout_strength: factor of the layout's residuals, 0 to 10; 0 runs no layout encoder.
            layout_start: share of the run, in [0, 1], from which on the layout is heard.
            layout_end: share of the run until which it is heard; not after `layout_start` means no layout.
            image: start from this image (image-to-image). Not after `vae.enable_tiling()` on a tiny VAE of other
                than four latent channels, as the bundled model's: diffusers encodes tiles of four.
            strength: share of the steps that run on `image`, in (0, 1]; without `image` it has no meaning.
            num_images_per_prompt: images for each row.
            eta: of DDIM, in [0, 1]; other schedulers ignore it.
            generator: one, or one for each image.
            latents: standard normal noise to start from, (images, C, h, w).
            prompt_embeds: h^c in place of `prompt`, (B, T, d_c).
            negative_prompt_embeds: in place of `negative_prompt`, (B, T, d_c).
            context_embeds: projected h^V in place of `context_images`, (B, N, d_c).
            output_type: pil, pt (B, 3, H, W), np (B, H, W, 3), both in [0, 1], or latent (B, C, h, w).
            return_dict: an `ImagePipelineOutput`, or a tuple.
            callback_on_step_end: called as f(pipe, step, timestep, tensors) after each step; returns the
                tensors it changed. It may set `pipe._interrupt`, `pipe._text_guidance` and
                `pipe._context_guidance`.
            callback_on_step_end_tensor_inputs: names out of `_callback_tensor_inputs`.

        Returns:
            The images, `num_images_per_prompt` in succession for each row.

        Raises:
            ContextDiffusionError: inputs that are missing, wrong or do not fit each other or the model.
        """
        if isinstance(callback_on_step_end, (PipelineCallback, MultiPipelineCallbacks)):
            callback_on_step_end_tensor_inputs = callback_on_step_end.tensor_inputs

        # 1. Read what was given: texts, images and tensors, a row each or one for all rows.
        request = Request(
            prompt=read_prompts(prompt, "prompt"),
            negative_prompt=read_prompts(negative_prompt, "negative_prompt"),
            prompt_embeds=prompt_embeds,
            negative_prompt_embeds=negative_prompt_embeds,
            contexts=None if context_images is None else self._read_context(context_images, context_weights),
            context_embeds=context_embeds,
            queries=self._read_query(query_image, query_map),
            starts=None if image is None else read_images(image, "image"),
        )
        rows = request.rows(self.unet.config.cross_attention_dim)

        # 2. Check the numbers, and that the model can do what is asked for.
        (num_inference_steps,) = STEPS.check(num_inference_steps=num_inference_steps)
        (repeats,) = whole_number(1).check(num_images_per_prompt=num_images_per_prompt)
        text_guidance, context_guidance = GUIDANCE.check(text_guidance=text_guidance, context_guidance=context_guidance)
        (layout_strength,) = LAYOUT_STRENGTH.check(layout_strength=layout_strength)
        layout_start, layout_end, eta, strength = SHARE.check(
            layout_start=layout_start, layout_end=layout_end, eta=eta, strength=strength
        )
        if strength == 0:
            raise ContextDiffusionError("strength is 0, expected a number in (0, 1]: 0 gives the image back")
        self._check_output(output_type, image is not None)
        check_callback(callback_on_step_end, callback_on_step_end_tensor_inputs, self._callback_tensor_inputs)
        check_scheduler(self.scheduler, (self.config.schedule or {}).get("prediction_type"))
        check_generator(generator, rows * repeats)
        height, width = self._latent_size(height, width, latents, rows * repeats)

        # 3. Encode text, context and query, a row an image.
        model, device = self.to_model(), self._execution_device
        tensors = self._encode(model, request, aggregation, device)
        if request.queries is not None and layout_strength > 0 and layout_start < layout_end:
            query = self._layout_query(request.queries, "none" if query_map is not None else map_name, height, width)
            tensors["query_map"] = query.to(device, self.layout_encoder.dtype)
        tensors = {name: spread(tensor, rows, repeats) for name, tensor in tensors.items()}

        # 4. Begin with noise, or with the image and noise over it.
        timesteps = set_timesteps(self.scheduler, num_inference_steps, device, strength if request.starts else 1.0)
        if latents is None:
            shape = (rows * repeats, self.unet.config.in_channels, height, width)
            latents = randn_tensor(shape, generator=generator, device=device, dtype=torch.float32)
        # Latents stay float32: in half precision the steps would round what the scheduler adds.
        tensors["latents"] = self._begin(request.starts, latents.to(device, torch.float32), timesteps[0])

        # 5. Step by step: the guided prediction, and what the scheduler makes of it.
        self._interrupt, self._num_timesteps = False, len(timesteps)
        # With neither text nor context every branch is the same one.
        guided = request.has_text or request.has_context
        self._text_guidance, self._context_guidance = (text_guidance, context_guidance) if guided else (1.0, 1.0)
        accepted = inspect.signature(self.scheduler.step).parameters
        extra = {name: value for name, value in (("eta", eta), ("generator", generator)) if name in accepted}
        steps, order = len(timesteps), self.scheduler.order
        # A callback may change the query; its features are made anew then.
        encoded = layout = None
        with self.progress_bar(total=math.ceil(steps / order)) as progress_bar:
            for i, t in enumerate(timesteps):
                if self.interrupt:
                    continue
                if tensors["query_map"] is not encoded:
                    encoded = tensors["query_map"]
                    layout = None if encoded is None else model.encode_query(encoded)
                heard = layout_start <= i / steps and (i + 1) / steps <= layout_end
                weights = branch_weights(
                    self._text_guidance, self._context_guidance, request.has_text, request.has_context
                )
                prediction = self._predict(model, t, tensors, weights, layout if heard else None, layout_strength)
                stepped = self.scheduler.step(prediction, t, tensors["latents"], **extra, return_dict=False)
                tensors["latents"] = stepped[0]
                if callback_on_step_end is not None:
                    handed = {name: tensors[name] for name in callback_on_step_end_tensor_inputs}
                    changed = read_changes(callback_on_step_end(self, i, t, handed))
                    tensors.update({name: value for name, value in changed.items() if name in tensors})
                if i == steps - 1 or i % order == 0:
                    progress_bar.update()

        # 6. Latents into images.
        result = self._decode(tensors["latents"], output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=result) if return_dict else (result,)

    def _begin(self, starts: list[Tensor] | None, noise: Tensor, t: Tensor) -> Tensor:
        """The latents of the first step: noise, or the images to start from with the noise of that step."""
        if not starts:
            return noise * getattr(self.scheduler, "init_noise_sigma", 1.0)
        clean = self._encode_start(starts, *noise.shape[-2:], noise.device)
        return add_noise(self.scheduler, clean.repeat_interleave(len(noise) // len(clean), 0), noise, t)

    def _predict(
        self,
        model: ContextDiffusion,
        t: Tensor,
        tensors: dict[str, Tensor],
        weights: dict[str, float],
        layout: Tensor | None,
        layout_strength: float,
    ) -> Tensor:
        """The guided prediction for the latents; branches whose y are equally long share one UNet call."""
        text, null_text = tensors["prompt_embeds"], tensors["negative_prompt_embeds"]
        context, null_context = tensors["context_embeds"], tensors["null_context"]
        if null_context.shape != context.shape:  # a callback changed the context
            null_context = model.null_context(len(context), context.shape[1], context)
        branches = {
            FULL: (text, context),
            CONTEXT_ONLY: (null_text, context),
            NULL: (null_text, null_context),
        }
        by_length: dict[int, dict[str, Tensor]] = {}
        for name in weights:
            y = model.condition(*branches[name])
            by_length.setdefault(y.shape[1], {})[name] = y
        latents = tensors["latents"]
        if hasattr(self.scheduler, "scale_model_input"):
            latents = self.scheduler.scale_model_input(latents, t)
        latents, predictions = latents.to(self.unet.dtype), {}
        for ys in by_length.values():
            prediction = model.predict(
                latents.repeat(len(ys), 1, 1, 1),
                t,
                torch.cat(list(ys.values())),
                None if layout is None else layout.repeat(len(ys), 1, 1, 1),
                layout_strength,
                context.shape[1],
            )
            predictions.update(zip(ys, prediction.float().chunk(len(ys)), strict=True))
        return guide(predictions, weights)
