"""What a file is said to be, by its tensors' names and shapes; the public files' shapes as the field documents them."""

from __future__ import annotations

import pytest

from context_diffusion import ContextDiffusionError
from context_diffusion.adapters.recognise import AdapterKind, recognise

SD15 = [320, 320, 640, 640, 1280, 1280, *[1280] * 3, *[640] * 3, *[320] * 3, 1280]
SDXL = [640] * 4 + [1280] * 20 + [1280] * 30 + [640] * 6 + [1280] * 10


def attention(widths, d, prefix="ip_adapter."):
    return {
        f"{prefix}{2 * j + 1}.{name}.weight": (width, d)
        for j, width in enumerate(widths)
        for name in ("to_k_ip", "to_v_ip")
    }


def base(d, encoder):
    return {
        "image_proj.proj.weight": (4 * d, encoder),
        "image_proj.proj.bias": (4 * d,),
        "image_proj.norm.weight": (d,),
        "image_proj.norm.bias": (d,),
    }


def plus(width, d, encoder=1280, tokens=16):
    return {
        "image_proj.latents": (1, tokens, width),
        "image_proj.proj_in.weight": (width, encoder),
        "image_proj.proj_out.weight": (d, width),
        "image_proj.layers.0.0.to_q.weight": (width, width),
    }


FULL = {
    "image_proj.proj.0.weight": (1280, 1280),
    "image_proj.proj.2.weight": (768, 1280),
    "image_proj.proj.3.weight": (768,),
}


@pytest.mark.parametrize(
    ("shapes", "expected"),
    [
        (base(768, 1024) | attention(SD15, 768), ("base", "image_embeds", 1024, 768, 4, "Stable Diffusion 1.5")),
        (base(768, 1280) | attention(SD15, 768), ("base", "image_embeds", 1280, 768, 4, "Stable Diffusion 1.5")),
        (base(2048, 1280) | attention(SDXL, 2048), ("base", "image_embeds", 1280, 2048, 4, "SDXL")),
        (
            plus(768, 768) | attention(SD15, 768, "adapter_modules."),
            ("plus", "penultimate_hidden_states", 1280, 768, 16, "Stable Diffusion 1.5"),
        ),
        (plus(1280, 2048) | attention(SDXL, 2048), ("plus", "penultimate_hidden_states", 1280, 2048, 16, "SDXL")),
        (FULL | attention(SD15, 768), ("full", "penultimate_hidden_states", 1280, 768, None, "Stable Diffusion 1.5")),
    ],
)
def test_public_files_are_known(shapes, expected):
    kind = recognise(shapes)
    assert isinstance(kind, AdapterKind)
    got = (kind.projection, kind.feature, kind.encoder_width, kind.text_width, kind.tokens, kind.family)
    assert got == expected


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        ({"redux_up.weight": (12288, 1152), "redux_down.weight": (4096, 12288)}, "Redux.*Load Style Model"),
        ({"style_embedding": (1, 8, 1024), "proj": (1024, 768)}, "T2I style.*Load Style Model"),
        ({"double_blocks.0.processor.ip_adapter_double_stream_k_proj.weight": (3072, 4096)}, "XLabs"),
        ({"image_proj.proj.0.weight": (2304, 1152), "ip_adapter.0.to_k_ip.weight": (3072, 4096)}, "InstantX.*FLUX"),
        ({"image_proj.time_embedding.linear_1.weight": (1280, 320)}, "Stable Diffusion 3.5"),
        ({"image_proj.perceiver_resampler.proj_in.weight": (768, 1280)}, "FaceID plus"),
        (
            {
                "image_proj.proj.0.weight": (1024, 512),
                "image_proj.proj.2.weight": (3072, 1024),
                "image_proj.norm.weight": (768,),
            },
            "FaceID or portrait",
        ),
        (plus(1280, 2048, 512) | attention(SDXL, 2048), "InstantID"),
        (plus(2048, 2048, 1024) | attention(SDXL, 2048), "Kolors"),
        ({"model.diffusion_model.out.2.weight": (4, 320, 3, 3)}, "no image adapter.*model.diffusion_model"),
        ({}, "no image adapter.*no tensor"),
        (base(768, 1024), "no attention weights"),
        (base(768, 1024) | attention(SD15, 640), "no whole tokens"),
        (FULL | attention(SDXL, 2048), "different adapters"),
        (base(768, 1024) | {k: v for k, v in attention(SD15, 768).items() if ".5." not in k}, "numbered 1, 3, 7"),
        (base(768, 1024) | attention(SD15, 768) | {"ip_adapter.3.to_v_ip.weight": (320, 1)}, "differ in shape"),
        ({"image_proj.strange": (1,)} | attention(SD15, 768), "no projection that is known"),
        (base(768, 1024) | attention(SD15, 768) | {"image_proj.proj.weight": (3072,)}, "expected a matrix"),
    ],
)
def test_others_are_named_for_what_they_are(shapes, words):
    with pytest.raises(ContextDiffusionError, match=words):
        recognise(shapes)
