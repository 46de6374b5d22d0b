"""Stage `clip`: the small CLIP, trained from emoji and captions that name content, style and colors.

A contrastive step sees each emoji in its plain or a transformed style; the caption of a transformed emoji names the
colors that it now has. So the image tokens carry color and line as well as content before the diffusion stage goes
on training them.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...checkpoint.tokenizer import tokenizer_to_json, train_tokenizer
from ...data.captions import FAMILY_WORDS, transformed_caption
from ...data.library import EmojiLibrary
from ...data.mixture import Mixture
from ...data.transforms import sample_transform
from ...model.visual_context import clip_preprocess
from ..config import RunConfig, stage_settings
from ..run.loop import batch_seed
from ..settings import CLIPSettings


def new_clip(settings: CLIPSettings, vocabulary: int, end_token: int) -> tuple[nn.Module, nn.Module]:
    """A CLIPTextModel and a CLIPVisionModel of one width, with random weights."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModel

    width = settings.width
    shape = {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_attention_heads": settings.heads,
        "projection_dim": width,
        "hidden_act": "quick_gelu",
    }
    text = CLIPTextConfig(
        vocab_size=vocabulary,
        max_position_embeddings=77,
        num_hidden_layers=settings.text_layers,
        bos_token_id=end_token - 1,
        eos_token_id=end_token,
        pad_token_id=end_token,
        **shape,
    )
    vision = CLIPVisionConfig(
        image_size=settings.image_size,
        patch_size=settings.patch_size,
        num_hidden_layers=settings.vision_layers,
        **shape,
    )
    image_encoder = CLIPVisionModel(vision)
    _cosine_patches(image_encoder, vision.patch_size)
    # The class token's last norm lies behind the last hidden state, which is all that is read here.
    getattr(image_encoder, "vision_model", image_encoder).post_layernorm.requires_grad_(False)
    return CLIPTextModel(text), image_encoder


@torch.no_grad()
def _cosine_patches(image_encoder: nn.Module, patch: int) -> None:
    """Start the patch embedding from the lowest cosine waves of each color, the first being the mean color.

    Random filters would have to learn first that a patch has a color; these give color, slopes and fine texture
    from the first step.
    """
    vision = getattr(image_encoder, "vision_model", image_encoder)
    weight = vision.embeddings.patch_embedding.weight
    position = (torch.arange(patch) + 0.5) * torch.pi / patch
    waves = torch.cos(torch.arange(patch)[:, None] * position)
    waves = waves / waves.norm(dim=1, keepdim=True)
    order = sorted(((i, j) for i in range(patch) for j in range(patch)), key=lambda pair: (sum(pair), pair))
    filters = [torch.outer(waves[i], waves[j]) for i, j in order]
    for channel in range(weight.shape[0]):
        rank, color = divmod(channel, 3)
        weight[channel] = 0
        weight[channel, color] = filters[rank] / patch


class CLIPObjective(nn.Module):
    """The symmetric contrastive loss of CLIP over the batch."""

    def __init__(self, text_encoder: nn.Module, image_encoder: nn.Module) -> None:
        super().__init__()
        width = text_encoder.config.hidden_size
        self.text_encoder, self.image_encoder = text_encoder, image_encoder
        self.text_head = nn.Linear(width, width, bias=False)
        self.image_head = nn.Linear(width, width, bias=False)
        self.scale = nn.Parameter(torch.tensor(2.3))

    def forward(self, batch: dict) -> tuple[Tensor, dict]:
        # The last hidden state is the first end token's, which has seen the whole caption.
        states = self.text_encoder(batch["ids"]).last_hidden_state
        text = self.text_head(states[torch.arange(len(states), device=states.device), batch["ends"]])
        tokens = self.image_encoder(pixel_values=batch["pixels"]).last_hidden_state
        # Pooled over all tokens, so that the patch tokens carry the meaning and not the class token alone.
        image = self.image_head(tokens.mean(1))
        text, image = F.normalize(text, dim=-1), F.normalize(image, dim=-1)
        logits = self.scale.clamp(max=4.6).exp() * image @ text.T
        truth = torch.arange(len(logits), device=logits.device)
        loss = (F.cross_entropy(logits, truth) + F.cross_entropy(logits.T, truth)) / 2
        accuracy = (logits.argmax(1) == truth).float().mean()
        return loss, {"loss": loss.detach(), "accuracy": accuracy}


class CLIPStage:
    """Pairs of a picture and its caption; its settings are `CLIPSettings`."""

    def __init__(self, config: RunConfig) -> None:
        torch.manual_seed(config.seed)
        self.config, self.settings = config, stage_settings(config)
        self.mixture = Mixture.open(config.data, self.settings.more_data)
        self.tokenizer = train_tokenizer(self._all_captions(), self.settings.vocabulary)
        text, vision = new_clip(self.settings, len(self.tokenizer), self.tokenizer.eos_token_id)
        self.module = CLIPObjective(text, vision)

    def _all_captions(self) -> list[str]:
        """What the vocabulary is learned from: words of the training emoji and of every style and color."""
        texts = []
        for library in self.mixture:
            texts += [
                ", ".join([entry["name"], entry["group"], entry["subgroup"], *entry["keywords"]])
                for key, entry in library.emoji.items()
                if not library.is_heldout(key)
            ]
            for style in library.train_styles:
                texts += [library.caption(style, key) for key in library.train_keys[style][::8]]
        return texts + list(FAMILY_WORDS.values()) * 20

    def batch(self, step: int, rank: int, world: int) -> dict:
        rng = np.random.default_rng(batch_seed(self.config.seed, step, rank))
        images, captions = [], []
        while len(images) < self.config.batch_size:
            image, caption = draw_pair(self.mixture.draw(rng), rng, self.settings.transformed)
            images.append(image)
            captions.append(caption)
        images = torch.cat(images)
        encoder = self.module.image_encoder
        ids = self.tokenizer(
            captions, padding="max_length", max_length=self.settings.text_tokens, truncation=True, return_tensors="pt"
        ).input_ids
        return {
            "pixels": clip_preprocess(images, encoder.config.image_size),
            "ids": ids,
            "ends": (ids == self.tokenizer.eos_token_id).int().argmax(1),
        }

    def sample(self) -> None:
        return None

    def finish(self, out: Path) -> None:
        self.module.text_encoder.save_pretrained(out / "text_encoder")
        self.module.image_encoder.save_pretrained(out / "image_encoder")
        (out / "tokenizer.json").write_text(tokenizer_to_json(self.tokenizer))


def draw_pair(library: EmojiLibrary, rng: np.random.Generator, transformed: float) -> tuple[Tensor, str]:
    """One training emoji (1, 3, H, W) and a caption that fits what it looks like."""
    style = str(rng.choice(library.train_styles))
    keys = library.train_keys[style]
    key = keys[int(rng.integers(len(keys)))]
    image = library.batch(style, [key])
    if rng.random() >= transformed:
        return image, library.caption(style, key, rng)
    transform = sample_transform(rng)
    image = transform(image, library.background(style, [key]))
    return image, transformed_caption(library.entry(style, key), transform.families, image[0], rng)
