"""The two ends of sampling: prompts, context, query and image into tensors, latents into images."""

from __future__ import annotations

import logging

import torch
from PIL import Image
from torch import Tensor

from ..errors import ContextDiffusionError
from ..images import fit_image, to_pil
from ..maps import make_map
from ..model.conditioning import encode_text
from ..model.context_diffusion import ContextDiffusion
from ..model.latents import decode_latents, encode_images
from ..model.layout import layout_of
from ..model.reading import Reading
from ..model.visual_context import encode_visual_context
from ..ranges import PIXELS
from .inputs import Context, Request, check_embeds, check_values, read_context, read_images, read_prompts

logger = logging.getLogger(__name__)

OUTPUT_TYPES = ("pil", "pt", "np", "latent")


class EncodingMixin:
    """What `ContextDiffusionPipeline` does before and after its steps; each method works alone, too."""

    @property
    def reading(self) -> Reading:
        """How the model reads its visual context."""
        return Reading.of(self.config.get("model_variant") or {})

    def to_model(self) -> ContextDiffusion:
        """The parts as a `ContextDiffusion` that shares their weights: what `save_checkpoint` takes."""
        return ContextDiffusion(
            self.unet,
            self.projector.plain(),
            layout_encoder=self.layout_encoder,
            vae=self.vae,
            text_encoder=self.text_encoder,
            tokenizer=self.tokenizer,
            image_encoder=self.image_encoder,
            schedule=self.config.get("schedule"),
            info=self.config.get("info"),
            reading=self.reading,
        )

    def encode_prompt(
        self,
        prompt: str | list[str] | None = None,
        negative_prompt: str | list[str] | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        device: torch.device | None = None,
    ) -> tuple[Tensor, Tensor]:
        """h^c of the prompts, and the null text that guidance steers away from.

        Args:
            prompt: None is "".
            negative_prompt: in place of the null text "".
            prompt_embeds: h^c itself, (B, T, d_c).
            negative_prompt_embeds: the null text itself, (B, T, d_c).
            device: where to encode; the pipeline's own when None.

        Returns:
            Two tensors (B, 77, d_c); either batch may be 1.

        Raises:
            ContextDiffusionError: a text to encode and no text encoder, or embeddings of the wrong shape.
        """
        device = device or self._execution_device
        embeds = {"prompt": prompt_embeds, "negative_prompt": negative_prompt_embeds}
        for name, text in {"prompt": prompt, "negative_prompt": negative_prompt}.items():
            if embeds[name] is not None:
                if text is not None:
                    raise ContextDiffusionError(f"got both {name} and {name}_embeds: give one of them")
                check_embeds(embeds[name], f"{name}_embeds", self.unet.config.cross_attention_dim)
                continue
            if self.text_encoder is None or self.tokenizer is None:
                raise ContextDiffusionError(
                    f"the model has no text encoder for the {name}: load one, or give {name}_embeds"
                )
            texts = read_prompts(text, name) or [""]
            embeds[name] = encode_text(self.tokenizer, self.text_encoder, texts, device)
        dtype = self.unet.dtype
        return embeds["prompt"].to(device, dtype), embeds["negative_prompt"].to(device, dtype)

    def encode_context(
        self,
        context_images: object,
        context_weights: object = None,
        aggregation: str | None = None,
        device: torch.device | None = None,
    ) -> Tensor:
        """Context images -> projected h^V.

        Args:
            context_images: one list of images, shared by the batch, or a list of lists, one for each row.
            context_weights: one number an image.
            aggregation: mean, sum or concat, see `visual_context.Join`; the model's own when None.
            device: where to encode; the pipeline's own when None.

        Returns:
            (1, N, d_c), or (B, N, d_c) with a list for each row; a row without images is N zero tokens.

        Raises:
            ContextDiffusionError: no image encoder, images or weights that do not fit, or rows that `concat`
                makes unequally long.
        """
        rows = self._read_context(context_images, context_weights)
        return self._encode_context(self.to_model(), rows, aggregation, device or self._execution_device)

    def _read_context(self, images: object, weights: object) -> list[Context]:
        """`read_context`, at the size of the image encoder's input where there is one."""
        encoder = self.image_encoder
        return read_context(images, weights, None if encoder is None else encoder.config.image_size)

    def _encode_context(
        self, model: ContextDiffusion, contexts: list[Context], aggregation: str | None, device: torch.device
    ) -> Tensor:
        """Contexts that `_read_context` read -> projected h^V, (B, N, d_c), see `encode_context`."""
        if self.image_encoder is None and any(images for images, _ in contexts):
            raise ContextDiffusionError(
                "the model has no image encoder for the context images: load one, or give context_embeds"
            )
        reading, encoded = model.reading, []
        for images, weights in contexts:
            tokens = None
            if images:
                tokens = encode_visual_context(
                    self.image_encoder,
                    torch.stack(images)[None],
                    weights,
                    aggregation or reading.aggregation,
                    device=device,
                    image_tokens=reading.image_tokens,
                )
                tokens = self.projector(tokens.to(device, self.projector.dtype))
            encoded.append(tokens)
        lengths = {tokens.shape[1] for tokens in encoded if tokens is not None}
        if len(lengths) > 1:
            raise ContextDiffusionError(
                "aggregation is 'concat' and the rows have different numbers of context images: "
                "give equal numbers, or use mean"
            )
        like = torch.empty(0, device=device, dtype=self.unet.dtype)
        null = model.null_context(1, lengths.pop() if lengths else self.config.context_tokens, like)
        return torch.cat([null if tokens is None else tokens.to(null) for tokens in encoded])

    def _encode(
        self, model: ContextDiffusion, request: Request, aggregation: str | None, device: torch.device
    ) -> dict[str, Tensor | None]:
        """What the branches of guidance read, by its name for callbacks; each tensor's batch is the rows', or 1."""
        text, null_text = self.encode_prompt(
            request.prompt, request.negative_prompt, request.prompt_embeds, request.negative_prompt_embeds, device
        )
        context = request.context_embeds
        if context is None:
            context = self._encode_context(model, request.contexts or [([], None)], aggregation, device)
        context = context.to(device, self.unet.dtype)
        return {
            "prompt_embeds": text,
            "negative_prompt_embeds": null_text,
            "context_embeds": context,
            "null_context": model.null_context(len(context), context.shape[1], context),
            "query_map": None,
        }

    def _layout_query(self, layouts: list[Tensor], map_name: str, height: int, width: int) -> Tensor:
        """The query at the size that brings the layout encoder to latents of (height, width)."""
        factor = layout_of(self.layout_encoder).query_factor
        fitted = torch.stack([fit_image(image, (height * factor, width * factor)) for image in layouts])
        return make_map(fitted, map_name)

    def _encode_start(self, starts: list[Tensor], height: int, width: int, device: torch.device) -> Tensor:
        size = (height * self.vae_scale_factor, width * self.vae_scale_factor)
        images = torch.stack([fit_image(image, size) for image in starts]).to(device, self.vae.dtype)
        return encode_images(self.vae, images).float()

    def _decode(self, latents: Tensor, output_type: str) -> Tensor | list[Image.Image]:
        if output_type == "latent":
            return latents if self.vae is None else latents.to(self.vae.dtype)  # what `vae.decode` takes
        images = decode_latents(self.vae, latents.to(self.vae.dtype)).float()
        if not torch.isfinite(images).all():
            logger.warning("the images hold NaN, shown as black: run the pipeline in float32 or bfloat16")
            images = images.nan_to_num()
        if output_type == "pt":
            return images
        if output_type == "np":
            return images.permute(0, 2, 3, 1).cpu().numpy()
        return [to_pil(image) for image in images]

    def _read_query(self, query_image: object, query_map: object) -> list[Tensor] | None:
        if query_image is None and query_map is None:
            return None
        if query_image is not None and query_map is not None:
            raise ContextDiffusionError("got both query_image and query_map: give one of them")
        if self.layout_encoder is None:
            raise ContextDiffusionError("the model has no layout encoder: load one, or leave the query out")
        if query_map is not None:
            return read_images(query_map, "query_map")
        return read_images(query_image, "query_image")

    def _latent_size(
        self, height: int | None, width: int | None, latents: Tensor | None, images: int
    ) -> tuple[int, int]:
        """Height and width of the latents."""
        factor, channels = self.vae_scale_factor, self.unet.config.in_channels
        if latents is not None:
            got = tuple(latents.shape) if isinstance(latents, Tensor) else type(latents).__name__
            if len(got) != 4 or got[:2] != (images, channels) or 0 in got:
                raise ContextDiffusionError(
                    f"latents: got {got}, expected a tensor of shape ({images}, {channels}, h, w)"
                )
            check_values(latents, "latents")
            size = tuple(latents.shape[-2:])
        else:
            size = self.unet.config.sample_size
            if size is None and (height is None or width is None):
                raise ContextDiffusionError("the UNet's config has no sample_size: give height and width")
            size = tuple(size) if isinstance(size, (list, tuple)) else (size, size)
        sides = []
        for name, side, own in (("height", height, size[0]), ("width", width, size[1])):
            if side is None:
                sides.append(own)
                continue
            (side,) = PIXELS.check(**{name: side})
            if side % factor:
                nearest = max(1, round(side / factor)) * factor
                raise ContextDiffusionError(
                    f"{name} is {side}, but the VAE takes multiples of {factor} pixels only: take {nearest}"
                )
            if latents is not None and side // factor != own:
                raise ContextDiffusionError(f"{name} is {side}, but the latents make {own * factor} pixels")
            sides.append(side // factor)
        return sides[0], sides[1]

    def _check_output(self, output_type: str, has_image: bool) -> None:
        if output_type not in OUTPUT_TYPES:
            choice = ", ".join(OUTPUT_TYPES)
            raise ContextDiffusionError(f"output_type is {output_type!r}; choose one of {choice}")
        if self.vae is None and (output_type != "latent" or has_image):
            raise ContextDiffusionError("the model has no VAE: load one, or ask for latents, without image")
