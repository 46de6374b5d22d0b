"""Bad input of the pipeline: one clear line each, before the UNet is asked anything."""

import numpy as np
import pytest
import torch

from context_diffusion.choices import AGGREGATIONS
from context_diffusion.errors import ContextDiffusionError
from context_diffusion.sampling.inputs import read_changes

from ..tiny_pipeline import make_pipe, picture, run, seeded


@pytest.fixture(scope="module")
def pipe():
    """For tests that leave it as it was."""
    return make_pipe(prediction_type="flow")


NAN = torch.full((3, 64, 64), float("nan"))


BAD = [
    ({"prompt": None, "context_images": None, "query_map": None}, "nothing to go by"),
    ({"prompt": None, "context_images": [], "query_map": None}, "nothing to go by"),
    ({"prompt": 3}, "prompt: got int"),
    ({"prompt": []}, "prompt: got an empty list"),
    ({"prompt": ["a", None]}, "prompt: got NoneType as text 2"),
    ({"prompt": "moon \ud83d"}, r"prompt: '\\ud83d' at place 5 is half of a character"),
    ({"negative_prompt": ["\udcff"]}, "negative_prompt: .* is half of a character"),
    ({"context_images": [NAN]}, "context_images.*NaN"),
    ({"context_images": ["a.png"]}, "context_images: got str"),
    ({"context_images": 7}, "context_images: got int"),
    ({"context_images": [picture(1), [picture(2)]]}, "mixes images and lists"),
    ({"context_images": [torch.rand(4, 8, 8)]}, "channels"),
    ({"context_weights": [1.0]}, "1 context weights for 2"),
    ({"context_weights": [1.0, "a"]}, "context_weights: got str"),
    ({"context_weights": 2.0}, "context_weights: got float"),
    ({"context_weights": [0.0, 0.0]}, "not all zero"),
    ({"context_weights": [1.0, 1e38]}, r"context_weights is 1e\+38, expected a number from 0 to 1000"),
    ({"context_weights": [1.0, 1e20], "aggregation": "sum"}, r"context_weights is 1e\+20"),
    ({"context_weights": [1.0, 1e20], "aggregation": "concat"}, r"context_weights is 1e\+20"),
    ({"context_weights": [1.0, -1.0]}, "context_weights is -1.0"),
    ({"context_weights": [1.0, [1.0]]}, "context_weights has 2 rows, context_images 1"),
    ({"context_images": [[picture(1)], [picture(2)]], "context_weights": [1.0, [1.0]]}, "context_weights: got float"),
    ({"query_map": NAN}, "query_map.*NaN"),
    ({"query_map": picture(1) * 255}, "query_map.*255"),
    ({"query_image": picture(1)}, "both query_image and query_map"),
    ({"query_map": None, "query_image": picture(1), "map_name": "laplace"}, "laplace.*choose one of"),
    ({"prompt": ["a", "b"], "query_map": [picture(i) for i in range(3)]}, "2 of prompt.*3 of query"),
    ({"prompt": ["a"] * 3, "context_images": [[picture(1)], [picture(2)]]}, "3 of prompt.*2 of context"),
    ({"context_images": [[picture(1)], [picture(2)] * 2], "aggregation": "concat"}, "concat"),
    ({"aggregation": "max"}, "choose one of mean, sum, concat"),
    ({"height": 60}, "height is 60.*multiples of 8 pixels.*take 64"),
    ({"width": 0}, "width is 0"),
    ({"text_guidance": float("nan")}, "text_guidance is nan"),
    ({"context_guidance": float("inf")}, "context_guidance is inf"),
    ({"text_guidance": "3"}, "text_guidance: got str"),
    ({"text_guidance": 1e38}, r"text_guidance is 1e\+38, expected a number from -100 to 100"),
    ({"context_guidance": -1e38}, r"context_guidance is -1e\+38"),
    ({"layout_strength": 1e38}, r"layout_strength is 1e\+38"),
    ({"num_inference_steps": 10**9}, "num_inference_steps is 1000000000, expected a whole number from 1 to 10000"),
    ({"height": 80_000}, "height is 80000, expected a whole number from 1 to 16384"),
    ({"num_inference_steps": 0}, "num_inference_steps is 0"),
    ({"num_inference_steps": 2.5}, "num_inference_steps is 2.5"),
    ({"num_images_per_prompt": 0}, "num_images_per_prompt is 0"),
    ({"image": picture(1), "strength": 0.0}, "strength is 0"),
    ({"image": picture(1), "strength": 1.5}, "strength is 1.5"),
    ({"image": []}, "image: got an empty list"),
    ({"layout_strength": -1.0}, "layout_strength is -1"),
    ({"layout_start": -0.1}, "layout_start is -0.1"),
    ({"layout_end": 2}, "layout_end is 2"),
    ({"output_type": "jpg"}, "output_type is 'jpg'"),
    ({"latents": torch.randn(2, 4, 8, 8)}, r"latents: got \(2, 4, 8, 8\), expected.*\(1, 4, h, w\)"),
    ({"latents": torch.full((1, 4, 8, 8), float("nan"))}, "latents holds NaN"),
    ({"latents": torch.full((1, 4, 8, 8), 1e38)}, "latents holds .* values beyond 10000"),
    ({"latents": torch.zeros(1, 4, 8, 8, dtype=torch.int64)}, "latents: dtype is torch.int64"),
    ({"latents": torch.zeros(1, 4, 0, 8)}, r"latents: got \(1, 4, 0, 8\)"),
    ({"latents": torch.randn(1, 4, 8, 8), "height": 96}, "height is 96, but the latents make 64"),
    ({"generator": [seeded(), seeded()]}, "2 generators for 1 images"),
    ({"generator": 42}, "generator: got int"),
    ({"prompt_embeds": torch.zeros(1, 77, 32)}, "both prompt and prompt_embeds"),
    ({"prompt": None, "prompt_embeds": torch.zeros(1, 77, 31)}, "prompt_embeds: got .*31"),
    ({"context_embeds": torch.zeros(1, 5, 32)}, "both context_images and context_embeds"),
    ({"prompt": None, "prompt_embeds": torch.zeros(0, 77, 32)}, r"prompt_embeds: got \(0, 77, 32\)"),
    ({"prompt": None, "prompt_embeds": torch.zeros(1, 0, 32)}, r"prompt_embeds: got \(1, 0, 32\)"),
    ({"context_images": None, "context_embeds": torch.full((1, 5, 32), 1e38)}, "context_embeds holds .* values beyond"),
    ({"callback_on_step_end": 3}, "callback_on_step_end: got int, expected a function"),
    ({"callback_on_step_end_tensor_inputs": "latents"}, "tensor_inputs is 'latents', expected a list"),
    ({"callback_on_step_end_tensor_inputs": ["noise"]}, "callbacks cannot get noise"),
]


@pytest.mark.parametrize("changes, message", BAD, ids=["-".join(changes) for changes, _ in BAD])
def test_bad_input_is_one_clear_line(pipe, changes, message):
    calls = []
    hook = pipe.unet.register_forward_pre_hook(lambda module, args: calls.append(module))
    with pytest.raises(ContextDiffusionError, match=message) as caught:
        run(pipe, **changes)
    hook.remove()
    assert "\n" not in str(caught.value)
    assert calls == []


def test_a_callback_that_gives_back_no_tensors(pipe):
    with pytest.raises(ContextDiffusionError, match="returned int as latents, expected a tensor"):
        read_changes({"latents": 3})
    assert read_changes({"query_map": None}) == {"query_map": None}
    with pytest.raises(ContextDiffusionError, match="callback_on_step_end returned int, expected a dict"):
        run(pipe, callback_on_step_end=lambda *arguments: 3)


def test_numbers_of_numpy_and_of_torch(pipe):
    plain = {
        "num_inference_steps": 3,
        "height": 48,
        "num_images_per_prompt": 2,
        "text_guidance": 2.0,
        "layout_end": 0.5,
        "context_weights": [1.0, 0.5],
    }
    expected = run(pipe, **plain)
    for kind in (np.array, torch.tensor):
        assert torch.equal(run(pipe, **{name: kind(value) for name, value in plain.items()}), expected)
    numbers = {**plain, "num_inference_steps": np.int64(3), "height": np.int32(48), "text_guidance": np.float32(2)}
    assert torch.equal(run(pipe, **numbers), expected)


def test_the_greatest_numbers_that_are_taken(pipe):
    greatest = {"text_guidance": 100, "context_guidance": -100, "layout_strength": 10, "context_weights": [1000, 1000]}
    for aggregation in AGGREGATIONS:
        assert torch.isfinite(run(pipe, **greatest, aggregation=aggregation, output_type="pt")).all()
    latents, embeds = torch.full((1, 4, 8, 8), 1e4), torch.full((1, 5, 32), -1e4)
    assert torch.isfinite(run(pipe, latents=latents, context_images=None, context_embeds=embeds)).all()


@pytest.mark.parametrize(
    "part, changes, message",
    [
        ("image_encoder", {}, "no image encoder"),
        ("layout_encoder", {}, "no layout encoder"),
        ("text_encoder", {}, "no text encoder"),
        ("vae", {"output_type": "pil"}, "no VAE"),
        ("vae", {"image": picture(1)}, "no VAE"),
    ],
)
def test_a_missing_part_is_named(part, changes, message):
    pipe = make_pipe(prediction_type="flow")
    setattr(pipe, part, None)
    with pytest.raises(ContextDiffusionError, match=message):
        run(pipe, **changes)
