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
from ..model.conditioning import combine
from ..model.guidance import CONTEXT_ONLY, FULL, NULL, branch_weights, guide
from ..model.latents import vae_scale_factor
from ..model.visual_context import ContextProjector
from ..projector import PretrainedContextProjector
from ..ranges import GUIDANCE, LAYOUT_STRENGTH, SHARE, STEPS, whole_number
from .encoding import EncodingMixin
from .inputs import check_callback, check_embeds, check_generator, common_batch, read_changes, read_images, read_prompts
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
        if image_encoder is not None:
            context_tokens = self.to_model().context_tokens
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
            image: start from this image (image-to-image).
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
        prompt = read_prompts(prompt, "prompt")
        negative_prompt = read_prompts(negative_prompt, "negative_prompt")
        contexts = None
        if context_images is not None:
            contexts = self._read_context(context_images, context_weights)
            # What is left of them, so that no image is decoded a second time.
            context_images = [images for images, _ in contexts]
        has_context = context_embeds is not None or any(images for images, _ in contexts or [])
        layouts = self._read_query(query_image, query_map)
        if not has_context and all(one is None for one in (prompt, prompt_embeds, layouts, image)):
            raise ContextDiffusionError("nothing to go by: give a prompt, context images or a query image")
        starts = read_images(image, "image") if image is not None else None

        (num_inference_steps,) = STEPS.check(num_inference_steps=num_inference_steps)
        (num_images_per_prompt,) = whole_number(1).check(num_images_per_prompt=num_images_per_prompt)
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
        if context_embeds is not None:
            if context_images is not None:
                raise ContextDiffusionError("got both context_images and context_embeds: give one of them")
            check_embeds(context_embeds, "context_embeds", self.unet.config.cross_attention_dim)

        batch = common_batch(
            prompt=prompt,
            negative_prompt=negative_prompt,
            prompt_embeds=prompt_embeds,
            negative_prompt_embeds=negative_prompt_embeds,
            context_images=contexts,
            context_embeds=context_embeds,
            query=layouts,
            image=starts,
        )
        images = batch * num_images_per_prompt
        check_generator(generator, images)
        height, width = self._latent_size(height, width, latents, images)

        self._interrupt = False
        self._text_guidance, self._context_guidance = text_guidance, context_guidance
        device = self._execution_device
        has_text = any(text is not None for text in (prompt_embeds, negative_prompt_embeds)) or any(
            any(texts or []) for texts in (prompt, negative_prompt)
        )
        if not has_text and not has_context:
            self._text_guidance = self._context_guidance = 1.0  # every branch is the same one

        prompt_embeds, negative_prompt_embeds = self.encode_prompt(
            prompt, negative_prompt, prompt_embeds, negative_prompt_embeds, device
        )
        if context_embeds is None and has_context:
            context_embeds = self.encode_context(context_images, context_weights, aggregation, device)
        elif context_embeds is None:
            context_embeds = self._null_context(None, device)
        tensors = {
            "prompt_embeds": prompt_embeds,
            "negative_prompt_embeds": negative_prompt_embeds,
            "context_embeds": context_embeds.to(device, self.unet.dtype),
            "null_context": self._null_like(context_embeds.to(device, self.unet.dtype)),
            "query_map": None,
        }
        if layouts is not None and layout_strength > 0 and layout_start < layout_end:
            query = self._layout_query(layouts, "none" if query_map is not None else map_name, height, width)
            tensors["query_map"] = query.to(device, self.layout_encoder.dtype)
        for name, tensor in tensors.items():
            tensors[name] = None if tensor is None else _rows(tensor, batch, num_images_per_prompt)

        timesteps = set_timesteps(self.scheduler, num_inference_steps, device, strength if starts else 1.0)
        self._num_timesteps = len(timesteps)
        if latents is None:
            shape = (images, self.unet.config.in_channels, height, width)
            latents = randn_tensor(shape, generator=generator, device=device, dtype=torch.float32)
        # Latents stay float32: in half precision the steps would round what the scheduler adds.
        latents = latents.to(device, torch.float32)
        if starts:
            clean = _rows(self._encode_start(starts, height, width, device), batch, num_images_per_prompt)
            tensors["latents"] = add_noise(self.scheduler, clean, latents, timesteps[0])
        else:
            tensors["latents"] = latents * getattr(self.scheduler, "init_noise_sigma", 1.0)

        extra = {"eta": eta, "generator": generator}
        accepted = inspect.signature(self.scheduler.step).parameters
        extra = {name: value for name, value in extra.items() if name in accepted}
        steps, order = len(timesteps), self.scheduler.order
        # A callback may change the query; its features are made anew then.
        shown = layout = None
        with self.progress_bar(total=math.ceil(steps / order)) as progress_bar:
            for i, t in enumerate(timesteps):
                if self.interrupt:
                    continue
                heard = layout_start <= i / steps and (i + 1) / steps <= layout_end
                weights = branch_weights(self._text_guidance, self._context_guidance, has_text, has_context)
                if tensors["query_map"] is not shown:
                    shown = tensors["query_map"]
                    layout = None if shown is None else self.to_model().encode_query(shown)
                prediction = self._predict(t, tensors, weights, layout if heard else None, layout_strength)
                stepped = self.scheduler.step(prediction, t, tensors["latents"], **extra, return_dict=False)
                tensors["latents"] = stepped[0]
                if callback_on_step_end is not None:
                    handed = {name: tensors[name] for name in callback_on_step_end_tensor_inputs}
                    changed = read_changes(callback_on_step_end(self, i, t, handed))
                    tensors.update({name: value for name, value in changed.items() if name in tensors})
                if i == steps - 1 or i % order == 0:
                    progress_bar.update()

        result = self._decode(tensors["latents"], output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=result) if return_dict else (result,)

    def _predict(
        self,
        t: Tensor,
        tensors: dict[str, Tensor],
        weights: dict[str, float],
        query: Tensor | None,
        layout_strength: float,
    ) -> Tensor:
        """The guided prediction for the latents; branches whose y are equally long share one UNet call."""
        text, null_text = tensors["prompt_embeds"], tensors["negative_prompt_embeds"]
        context, null_context = tensors["context_embeds"], tensors["null_context"]
        if null_context.shape != context.shape:  # a callback changed the context
            null_context = self._null_like(context)
        branches = {
            FULL: (text, context),
            CONTEXT_ONLY: (null_text, context),
            NULL: (null_text, null_context),
        }
        by_length: dict[int, dict[str, Tensor]] = {}
        for name in weights:
            y = combine(*branches[name])
            by_length.setdefault(y.shape[1], {})[name] = y
        latents = tensors["latents"]
        if hasattr(self.scheduler, "scale_model_input"):
            latents = self.scheduler.scale_model_input(latents, t)
        latents = latents.to(self.unet.dtype)
        model, predictions = self.to_model(), {}
        for ys in by_length.values():
            rows = len(ys)
            prediction = model.predict(
                latents.repeat(rows, 1, 1, 1),
                t,
                torch.cat(list(ys.values())),
                None if query is None else query.repeat(rows, 1, 1, 1),
                layout_strength,
                context.shape[1],
            )
            predictions.update(zip(ys, prediction.float().chunk(rows), strict=True))
        return guide(predictions, weights)


def _rows(tensor: Tensor, batch: int, repeats: int) -> Tensor:
    """(1 or batch, ...) -> (batch * repeats, ...), a row's repeats in succession."""
    return tensor.expand(batch, *tensor.shape[1:]).repeat_interleave(repeats, 0)
