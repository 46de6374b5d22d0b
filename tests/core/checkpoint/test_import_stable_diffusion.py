"""A model from small StableDiffusionPipeline and CLIPModel folders, written by their own libraries."""

import json
import shutil

import pytest
import torch

from context_diffusion import ContextDiffusion, ContextDiffusionError, load_checkpoint, save_checkpoint
from context_diffusion.checkpoint.tokenizer import train_tokenizer

from ..tiny import taesd_vae, text_config, tiny_tokenizer, tiny_unet, tiny_vae, vision_config


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """The pipeline and the CLIP, and the folders that they wrote."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline
    from transformers import CLIPConfig, CLIPModel, CLIPTextModel

    folder = tmp_path_factory.mktemp("originals")
    torch.manual_seed(0)
    tokenizer = tiny_tokenizer()
    pipeline = StableDiffusionPipeline(
        vae=tiny_vae(),
        text_encoder=CLIPTextModel(text_config(tokenizer)).eval(),
        tokenizer=tokenizer,
        unet=tiny_unet().eval(),
        scheduler=DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.001, prediction_type="v_prediction"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder / "sd", safe_serialization=True)
    config = CLIPConfig(
        text_config=text_config(tokenizer).to_dict(),
        vision_config=vision_config().to_dict(),
        projection_dim=24,
    )
    clip = CLIPModel(config).eval()
    clip.save_pretrained(folder / "clip", safe_serialization=True)
    tokenizer.save_pretrained(folder / "clip")
    return pipeline, clip, folder


@pytest.fixture
def folders(originals, tmp_path):
    """Copies that a test may damage: (stable diffusion, clip)."""
    shutil.copytree(originals[2], tmp_path, dirs_exist_ok=True)
    return tmp_path / "sd", tmp_path / "clip"


def build(folders, **options):
    return ContextDiffusion.from_stable_diffusion(*folders, **options)


@pytest.fixture(scope="module")
def model(originals):
    return build((originals[2] / "sd", originals[2] / "clip"))


def test_takes_over_what_stable_diffusion_computes(originals, model):
    pipeline, clip, _ = originals
    latents, text = torch.randn(1, 4, 8, 8), torch.randn(1, 77, 32)
    images, pixels = torch.rand(1, 3, 64, 64), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        ids = pipeline.tokenizer("full moon", padding="max_length", return_tensors="pt").input_ids
        assert torch.equal(model.encode_prompts(["full moon"]), pipeline.text_encoder(ids).last_hidden_state)
        assert torch.equal(model.predict(latents, torch.tensor(7), text), pipeline.unet(latents, 7, text).sample)
        expected = pipeline.vae.encode(images * 2 - 1).latent_dist.mode() * pipeline.vae.config.scaling_factor
        assert torch.equal(model.encode_images(images), expected)
        tokens = clip.vision_model(pixel_values=pixels).last_hidden_state
        assert torch.equal(model.image_encoder(pixel_values=pixels).last_hidden_state, tokens)


@torch.no_grad()
def test_takes_a_tiny_vae_where_the_folder_has_one(folders):
    vae = taesd_vae().eval()
    shutil.rmtree(folders[0] / "vae")
    vae.save_pretrained(folders[0] / "vae")
    model, images = build(folders), torch.rand(1, 3, 64, 64)
    assert torch.equal(model.encode_images(images), vae.encode(images * 2 - 1).latents * 0.7)
    assert model.info["resolution"] == 64


def test_a_fresh_layout_encoder_changes_nothing_and_can_learn(model):
    latents, y = torch.randn(1, 4, 8, 8), torch.randn(1, 80, 32)
    without = model.predict(latents, torch.tensor(7), y)
    within = model.predict(latents, torch.tensor(7), y, torch.rand(1, 3, 64, 64))
    assert torch.equal(without, within)
    within.square().mean().backward()
    assert model.layout_encoder.controlnet_mid_block.weight.grad.abs().sum() > 0
    model.zero_grad()
    copied = model.unet.state_dict()["down_blocks.1.resnets.0.conv1.weight"]
    assert torch.equal(model.layout_encoder.state_dict()["down_blocks.1.resnets.0.conv1.weight"], copied)


def test_projector_starts_small_but_not_at_zero(model):
    tokens = model.projector(torch.randn(1, 500, 48))
    assert 0.07 < tokens.std() < 0.13
    assert model.projector.linear.bias.abs().sum() == 0


def test_what_the_paper_trains_requires_gradients(model):
    trained = {name.split(".")[0] for name, p in model.named_parameters() if p.requires_grad}
    frozen = {name.split(".")[0] for name, p in model.named_parameters() if not p.requires_grad}
    assert trained == {"unet", "layout_encoder", "projector"}
    assert frozen == {"vae", "text_encoder", "image_encoder"}


def test_schedule_and_info(model):
    assert model.schedule["prediction_type"] == "v_prediction"
    assert (model.schedule["beta_schedule"], model.schedule["beta_start"]) == ("scaled_linear", 0.001)
    assert model.schedule["beta_end"] == 0.02  # DDIMScheduler's own default, not Stable Diffusion's
    assert model.info == {"title": "Context Diffusion from sd", "resolution": 64}


def test_goes_through_a_checkpoint(model, tmp_path):
    again = load_checkpoint(save_checkpoint(model, tmp_path / "start.safetensors"))
    mine, theirs = model.state_dict(), again.state_dict()
    assert list(mine) == list(theirs)
    assert all(torch.equal(mine[key], theirs[key]) for key in mine)


def test_options(folders):
    model = build(folders, dtype=torch.float16, info={"license": "CC0-1.0"})
    assert {p.dtype for p in model.parameters()} == {torch.float16}
    assert model.info["license"] == "CC0-1.0"


def test_variant(folders):
    for part, stem in (("unet", "diffusion_pytorch_model"), ("vae", "diffusion_pytorch_model")):
        file = folders[0] / part / f"{stem}.safetensors"
        file.rename(file.with_name(f"{stem}.fp16.safetensors"))
    for file in (folders[0] / "text_encoder" / "model.safetensors", folders[1] / "model.safetensors"):
        file.rename(file.with_name("model.fp16.safetensors"))
    with pytest.raises(ContextDiffusionError, match="unet does not load as a UNet2DConditionModel"):
        build(folders)
    assert build(folders, variant="fp16").unet is not None


def edit_json(file, **entries):
    file.write_text(json.dumps({**json.loads(file.read_text()), **entries}))


def only_pickle(folder, name):
    (folder / f"{name}.safetensors").unlink()
    (folder / f"{name}.bin").write_bytes(b"never opened")


def other_tokenizer(clip):
    train_tokenizer(["other words other words"], 530).save_pretrained(clip)


def wider_text(sd):
    from transformers import CLIPTextModel

    CLIPTextModel(text_config(tiny_tokenizer(), width=64)).save_pretrained(sd / "text_encoder")


def wider_unet(sd):
    tiny_unet(in_channels=8).save_pretrained(sd / "unet")


def drop_weight(folder):
    from safetensors.torch import load_file, save_file

    file = folder / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    del weights["conv_in.bias"]
    save_file(weights, file, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda sd, clip: shutil.rmtree(sd), "sd is not a folder"),
        (lambda sd, clip: (sd / "model_index.json").unlink(), "no model_index.json"),
        (lambda sd, clip: shutil.rmtree(sd / "vae"), "vae is not a folder"),
        (lambda sd, clip: shutil.rmtree(sd / "tokenizer"), "tokenizer has neither"),
        (
            lambda sd, clip: only_pickle(sd / "unet", "diffusion_pytorch_model"),
            "only diffusion_pytorch_model.bin, a p",
        ),
        (lambda sd, clip: only_pickle(clip, "model"), "clip has only model.bin, a pickle"),
        (
            lambda sd, clip: (sd / "unet" / "diffusion_pytorch_model.safetensors").unlink(),
            "unet has no weights",
        ),
        (
            lambda sd, clip: drop_weight(sd / "unet"),
            "lacks 1 weights of a UNet2DConditionModel: conv_in.bias",
        ),
        (
            lambda sd, clip: (sd / "vae" / "config.json").write_text("{"),
            "vae does not load as a AutoencoderKL",
        ),
        (lambda sd, clip: edit_json(clip / "config.json", model_type="siglip"), "type 'siglip'"),
        (lambda sd, clip: other_tokenizer(clip), "tokenizer of 522 tokens other than the 540"),
        (lambda sd, clip: wider_text(sd), "cross_attention_dim is 32 and the text encoder's width is 64"),
        (lambda sd, clip: wider_unet(sd), "in_channels is 8 and the VAE's latent_channels is 4"),
        (
            lambda sd, clip: edit_json(sd / "scheduler" / "scheduler_config.json", _class_name="Nope"),
            "scheduler that",
        ),
        (
            lambda sd, clip: edit_json(sd / "scheduler" / "scheduler_config.json", prediction_type="sample"),
            "'sample'",
        ),
        (
            lambda sd, clip: edit_json(sd / "scheduler" / "scheduler_config.json", trained_betas=[0.1]),
            "trained_betas",
        ),
    ],
)
def test_folders_that_do_not_serve(folders, damage, message):
    damage(*folders)
    with pytest.raises(ContextDiffusionError, match=message) as caught:
        build(folders)
    assert "\n" not in str(caught.value)
