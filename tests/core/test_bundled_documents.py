"""What is said of the bundled model, and the styles that lie beside it, are of the very file that lies there."""

import hashlib
import re
from decimal import Decimal
from pathlib import Path

import pytest
import torch

from context_diffusion.checkpoint.read import load_checkpoint
from context_diffusion.checkpoint.style import load_style
from context_diffusion.images import load_image_as_tensor
from context_diffusion.model.visual_context import clip_preprocess
from context_diffusion.pretrained import bundled_model_path, bundled_styles
from context_diffusion.pretrained.examples import find_example

ROOT = Path(__file__).parents[2]
CARD = bundled_model_path().with_suffix(".md").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")

# Words of the README before a ratio -> the card's section that has it.
RATIOS = {
    "RMSE in C against a shuffled context: ": "Held-out emoji, train styles",
    "in 300 held-out emoji of two unseen styles ": "Held-out emoji, unseen styles",
    "602 in held-out kinds of style transforms ": "Held-out families of style transforms, a larger sample",
}


def table(text):
    """The first table of a Markdown text: first cell of a row -> {head of a column: cell}."""
    lines = re.search(r"(?:^\|.*\n)+", text, re.M)[0].splitlines()
    heads, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    return {row[0]: dict(zip(heads[1:], row[1:], strict=True)) for row in rows}


def rounds_to(exact, short):
    """Whether a number with both roundings exists; the card's last digit is rounded too."""
    exact, short = Decimal(exact), Decimal(short)
    units = [Decimal(1).scaleb(number.as_tuple().exponent) for number in (exact, short)]
    return abs(exact - short) < sum(units) / 2


def test_the_card_names_the_file():
    stated = re.search(r"^- sha256: ([0-9a-f]{16,64})$", CARD, re.M)[1]
    assert hashlib.sha256(bundled_model_path().read_bytes()).hexdigest().startswith(stated)


def section(head):
    return CARD.partition(f"### {head}\n")[2].partition("\n### ")[0]


def test_the_readmes_figures_are_the_cards():
    text, train = README.partition("## Figures\n")[2], section("Held-out emoji, train styles")
    assert text.split()[0] + " images of" in train
    short, exact = table(text), table(train)
    assert list(short) == list(exact)
    for setting, figures in short.items():
        assert len(figures) >= 4
        for figure, value in figures.items():
            whole = exact[setting][figure].partition(" ")[0]
            assert bool(value) == bool(whole), (setting, figure)
            assert not value or rounds_to(whole, value), (setting, figure)


@pytest.mark.parametrize(("words", "head"), RATIOS.items())
def test_the_readmes_ratios_are_the_cards(words, head):
    ratios = table("| ratio |" + section(head).partition("| ratio |")[2])
    assert words + ratios["rmse c/shuffled"][""] in " ".join(README.split())


def test_figures_of_too_few_or_other_digits_are_told_apart():
    assert rounds_to("0.0065", "0.007") and rounds_to("0.0065", "0.006") and rounds_to("0.128", "0.128")
    assert not rounds_to("0.0064", "0.007") and not rounds_to("0.128", "0.129") and not rounds_to("-0.0065", "0.007")


@pytest.fixture(scope="module")
def image_encoder():
    return load_checkpoint(bundled_model_path()).image_encoder.float().eval()


def made_from():
    """Style -> the example that its folder's README says it was made from."""
    text = (next(iter(bundled_styles().values())).parent / "README.md").read_text(encoding="utf-8")
    return {style: row["made from the example"] for style, row in table(text).items()}


def test_every_bundled_style_says_what_it_was_made_from():
    assert set(made_from()) == set(bundled_styles())


@torch.no_grad()
@pytest.mark.parametrize("name", bundled_styles())
def test_bundled_styles_are_what_the_bundled_encoder_makes_of_their_images(image_encoder, name):
    tensors, info = load_style(bundled_styles()[name])
    context = find_example(made_from()[name]).context
    assert info["images"] == len(context) and info["aggregation"] == "mean"
    images = torch.stack([load_image_as_tensor(path) for path in context])
    pixels = clip_preprocess(images, image_encoder.config.image_size)
    output = image_encoder(pixel_values=pixels, output_hidden_states=True)
    expected = {
        "last_hidden_state": output.last_hidden_state,
        "penultimate_hidden_states": output.hidden_states[-2],
        "image_embeds": output.pooler_output,
    }
    assert tensors.keys() == expected.keys()
    for feature, each in expected.items():
        mean = each.mean(0, keepdim=True)
        error = (tensors[feature] - mean).norm() / mean.norm()
        assert error < 1e-3, (feature, float(error))
