"""Visual context against its definitions in section 3.2 of the paper."""

import subprocess
import sys

import pytest
import torch

from context_diffusion.errors import ContextDiffusionError
from context_diffusion.model.visual_context import (
    ContextProjector,
    Join,
    clip_crop,
    clip_preprocess,
    encode_visual_context,
    null_context,
)

from ..tiny import tiny_model


@pytest.fixture(scope="module")
def encoder():
    return tiny_model().image_encoder


def pictures(k, size=32, seed=0):
    return torch.rand(k, 3, size, size, generator=torch.Generator().manual_seed(seed))


def encode(encoder, images, *more):
    """As the model does: what the encoder sees of the images, in one row."""
    return encode_visual_context(encoder, clip_crop(images, 32)[None], *more)


def test_tokens_are_the_last_hidden_state_of_clip_input(encoder):
    images = pictures(1)
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(1, 3, 1, 1)
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(1, 3, 1, 1)
    pixels = ((images * 255).round() / 255 - mean) / std
    expected = encoder(pixel_values=pixels).last_hidden_state
    torch.testing.assert_close(encode(encoder, images), expected)
    assert expected.shape == (1, 5, 48)


def test_mean_of_equal_images_is_one_image(encoder):
    image = pictures(1)
    one = encode(encoder, image)
    for k in (2, 3, 11):
        torch.testing.assert_close(encode(encoder, image.expand(k, -1, -1, -1)), one, rtol=0, atol=1e-6)


def test_order_does_not_matter(encoder):
    images, weights = pictures(5), [1.0, 2.0, 0.5, 0.0, 3.0]
    order = [3, 1, 4, 0, 2]
    straight = encode(encoder, images, weights)
    shuffled = encode(encoder, images[order], [weights[i] for i in order])
    torch.testing.assert_close(shuffled, straight, rtol=0, atol=1e-6)


@pytest.mark.parametrize("aggregation", ["mean", "sum", "concat"])
@pytest.mark.parametrize("weights", [None, [1.0, 0.5, 2.0, 0.0, 0.0, 1.0, 3.0]])
def test_chunked_equals_unchunked_and_the_formula(encoder, aggregation, weights):
    images = pictures(7)
    inputs = [clip_preprocess(image[None], 32) for image in images]
    tokens = torch.cat([encoder(pixel_values=pixels).last_hidden_state for pixels in inputs])
    numbers = torch.tensor(weights or [1.0] * 7)
    scaled = tokens * numbers[:, None, None]
    expected = {
        "mean": scaled.sum(0, keepdim=True) / numbers.sum(),
        "sum": scaled.sum(0, keepdim=True),
        "concat": torch.cat(list(scaled))[None],
    }[aggregation]
    for chunk_size in (1, 2, 3, 7, 100):
        chunked = encode(encoder, images, weights, aggregation, chunk_size)
        torch.testing.assert_close(chunked, expected, rtol=1e-5, atol=1e-5)
    rows = torch.stack([images, images.flip(0)])
    model = tiny_model()
    both = model.encode_context(rows, weights, aggregation)
    for row, joined in zip(rows, both, strict=True):
        torch.testing.assert_close(joined[None], model.encode_context(row, weights, aggregation), rtol=1e-5, atol=1e-5)


def test_256_images_go_through_the_encoder_eight_at_a_time(encoder):
    batches = []
    hook = encoder.register_forward_pre_hook(
        lambda module, args, kwargs: batches.append(len(kwargs["pixel_values"])), with_kwargs=True
    )
    try:
        tokens = encode(encoder, pictures(256))
    finally:
        hook.remove()
    assert max(batches) == 8 and sum(batches) == 256
    assert tokens.shape == (1, 5, 48)


def test_weight_zero_leaves_an_image_out(encoder):
    images = pictures(2)
    torch.testing.assert_close(encode(encoder, images, [1.0, 0.0]), encode(encoder, images[:1]))


def test_clip_crop_keeps_the_centre_and_is_idempotent():
    wide = torch.zeros(1, 3, 40, 120)
    wide[..., 40:80] = 1.0  # the middle third is what a square crop keeps
    seen = clip_crop(wide, 20)
    assert seen.shape == (1, 3, 20, 20)
    assert seen[..., 2:-2].min() > 0.99
    torch.testing.assert_close(clip_crop(seen, 20), seen, rtol=0, atol=0)
    tall = clip_crop(wide.transpose(-1, -2), 20)
    torch.testing.assert_close(tall, seen.transpose(-1, -2), rtol=0, atol=1 / 255 + 1e-6)


def test_clip_crop_lands_on_the_8_bit_grid():
    seen = clip_crop(pictures(1, 50), 32) * 255
    torch.testing.assert_close(seen, seen.round(), rtol=0, atol=1e-4)
    assert seen.min() >= 0 and seen.max() <= 255


def test_projector_is_the_linear_map_of_its_weights():
    projector, tokens = ContextProjector(6, 4), torch.randn(2, 3, 6)
    expected = torch.einsum("bnd,cd->bnc", tokens, projector.linear.weight) + projector.linear.bias
    torch.testing.assert_close(projector(tokens), expected)


def test_null_context_is_zeros():
    null = null_context(2, 5, 4, torch.ones(1, dtype=torch.float64))
    assert null.shape == (2, 5, 4) and null.dtype == torch.float64 and not null.any()


@pytest.mark.parametrize(
    "weights, message",
    [
        ([1.0], "1 context weights for 2"),
        ([1.0, float("nan")], "nan.*each must be a number from 0 to 1000"),
        ([1.0, -1.0], "-1.0.*a number from 0 to 1000"),
        ([1.0, 1e20], "a number from 0 to 1000"),
        ([0.0, 0.0], "not all zero"),
    ],
)
def test_bad_weights(encoder, weights, message):
    with pytest.raises(ContextDiffusionError, match=message):
        encode(encoder, pictures(2), weights)


def test_no_image_and_unknown_aggregation(encoder):
    with pytest.raises(ContextDiffusionError, match="0 context images"):
        encode(encoder, torch.zeros(0, 3, 32, 32))
    with pytest.raises(ContextDiffusionError, match="choose one of mean, sum, concat"):
        encode(encoder, pictures(1), None, "median")


def test_importing_the_core_imports_neither_diffusers_nor_transformers():
    code = (
        "import sys; from context_diffusion.model import conditioning, guidance, context_diffusion, visual_context; "
        "print([name for name in ('diffusers', 'transformers', 'accelerate') if name in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_the_join_takes_features_of_any_shape() -> None:
    weights = torch.tensor([1.0, 0.5, 2.0])
    for shape in ((3, 4), (3, 2, 5, 4)):
        features = torch.randn(shape, generator=torch.Generator().manual_seed(1))
        weighted = features * weights.view(-1, *[1] * (features.ndim - 1))
        total = weighted.sum(0, keepdim=True)
        for name, expected in {"mean": total / 3.5, "sum": total, "concat": weighted}.items():
            join = Join(weights, name)
            join.add(features[:2])
            join.add(features[2:])
            torch.testing.assert_close(join.result(), expected)
