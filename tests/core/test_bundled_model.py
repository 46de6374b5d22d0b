"""The model that comes with the package: its file, its limits, and that it makes pictures."""

import pytest
import torch
from PIL import Image
from safetensors import safe_open

from context_diffusion.checkpoint.native import check_native_limits
from context_diffusion.checkpoint.read import load_checkpoint, read_metadata
from context_diffusion.cli import main
from context_diffusion.images import load_image_as_tensor
from context_diffusion.pretrained import DEFAULT_MODEL, bundled_model_path, bundled_models
from context_diffusion.pretrained.examples import find_example


@pytest.fixture(scope="module")
def model():
    return load_checkpoint(bundled_model_path()).float().eval()


def test_the_file_is_small_half_precision_and_documented():
    assert DEFAULT_MODEL in bundled_models()
    path = bundled_model_path()
    assert path.stat().st_size <= 40e6
    with safe_open(path, "pt") as file:
        kinds = {str(file.get_slice(name).get_dtype()) for name in file.keys()}  # noqa: SIM118
    assert kinds == {"F16"}
    info = read_metadata(path)["info"]
    assert info["resolution"] == 128 and "BY-SA" in info["license"]
    card = path.with_suffix(".md").read_text()
    for heading in ("Training", "Held-out figures", "Licence", "Limits"):
        assert heading in card


def test_comfyui_can_hold_it(model):
    assert check_native_limits(model) == []


@torch.no_grad()
def test_the_autoencoder_keeps_an_example_image(model):
    image = load_image_as_tensor(find_example("moon-camp").context[0], 128)[None]
    error = (model.decode_latents(model.encode_images(image)) - image).square().mean()
    # 26 dB: far from any mean color, below every figure of the card.
    assert -10 * torch.log10(error) > 26


def test_context_changes_the_colors_and_the_query_stays(tmp_path):
    """Red squares or blue squares as context: the picture of the same circle turns red or blue."""
    query = torch.ones(3, 128, 128)
    y, x = torch.meshgrid(torch.arange(128.0), torch.arange(128.0), indexing="ij")
    disc = ((x - 64) ** 2 + (y - 64) ** 2).sqrt() < 44
    query[:, disc] = torch.tensor([0.5, 0.5, 0.5])[:, None]
    to_file(query, tmp_path / "query.png")
    means = {}
    for name, color in (("red", (0.85, 0.15, 0.15)), ("blue", (0.15, 0.25, 0.85))):
        for number, half in enumerate((26, 34, 42)):
            square = torch.ones(3, 128, 128)
            square[:, 64 - half : 64 + half, 64 - half : 64 + half] = torch.tensor(color)[:, None, None]
            to_file(square, tmp_path / f"{name}{number}.png")
        words = ["--context", *(str(tmp_path / f"{name}{number}.png") for number in range(3))]
        out = tmp_path / f"{name}.png"
        words += ["--query", str(tmp_path / "query.png"), "--map", "softedge", "--steps", "8", "--out", str(out)]
        assert main(["generate", *words]) == 0
        means[name] = load_image_as_tensor(out)[:, disc].mean(1)
    red_over_blue = {name: float(mean[0] - mean[2]) for name, mean in means.items()}
    assert red_over_blue["red"] > red_over_blue["blue"] + 0.2


def test_the_missions_example_makes_a_grid(tmp_path):
    out = tmp_path / "moon.png"
    assert main(["generate", "--example", "moon-camp", "--grid", "--steps", "2", "--out", str(out)]) == 0
    with Image.open(out) as grid:
        # Query, map, three context images and the result, side by side.
        assert grid.width > 5 * 128 and grid.height >= 128


def to_file(image, path):
    pixels = (image * 255).round().byte().permute(1, 2, 0).numpy()
    Image.fromarray(pixels).save(path)
