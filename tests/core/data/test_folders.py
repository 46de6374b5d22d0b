"""One's own pictures: what of a folder becomes a data set, its split and captions, and what is left out."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from context_diffusion.data.caption_files import read_captions
from context_diffusion.data.folders import build_folder, count_skipped
from context_diffusion.data.library import EmojiLibrary
from context_diffusion.errors import ContextDiffusionError

SIZE = 32


def picture(number: int, size: tuple[int, int] = (40, 40), mode: str = "RGB") -> Image.Image:
    """A square of its own color and place on white."""
    image = Image.new(mode, size, (255,) * 3 if mode == "RGB" else (0, 0, 0, 0))
    color = (7 * number % 256, 90, 255 - 5 * number % 256, 255)
    image.paste(color[: len(mode)], (number % 8, 2, number % 8 + 20, 30))
    return image


def make_folder(root: Path, **counts: int) -> Path:
    """ROOT/STYLE/picture a.png, b.png ..., another picture in every place."""
    for style_number, (style, count) in enumerate(sorted(counts.items())):
        (root / style).mkdir(parents=True)
        for number in range(count):
            picture(30 * style_number + number).save(root / style / f"thing {chr(97 + number)}.png")
    return root


def build(tmp_path: Path, **settings: object) -> dict:
    return build_folder(tmp_path / "data", tmp_path / "mine", SIZE, 1, quiet=True, **settings)


def test_the_library_reads_it_and_a_name_is_held_out_in_every_style(tmp_path: Path) -> None:
    make_folder(tmp_path / "mine", ink=12, oil=20)
    index = build(tmp_path, heldout=0.2)
    library = EmojiLibrary(tmp_path / "data")
    assert library.size == SIZE and library.train_styles == ["ink", "oil"]
    assert len(library.keys["ink"]) == 12 and len(library.keys["oil"]) == 20 and index["skipped"] == {}
    held = {key for key in library.emoji if library.is_heldout(key)}
    assert len(held) == 4, "a fifth of twenty names"
    for style in ("ink", "oil"):
        assert set(library.heldout_keys[style]) == held & set(library.keys[style])
        assert not held & set(library.train_keys[style])
    # The key is the name, the image the picture.
    expected = np.asarray(picture(30 + 1).resize((SIZE, SIZE), Image.Resampling.BICUBIC), np.float32) / 255
    got = library.image("oil", "thing b").permute(1, 2, 0).numpy()
    assert np.abs(got - expected).mean() < 0.02
    assert library.caption("oil", "thing b").startswith("thing b, oil")


def test_every_kind_of_picture_comes_out_centred_on_white(tmp_path: Path) -> None:
    folder = tmp_path / "mine" / "kinds"
    make_folder(tmp_path / "mine", kinds=9)
    red = (255, 0, 0)
    Image.new("RGB", (40, 20), red).save(folder / "wide.jpg", quality=100)
    clear = Image.new("RGBA", (40, 40), (0, 0, 0, 0))
    clear.paste((*red, 255), (10, 10, 30, 30))
    clear.save(folder / "clear.webp", lossless=True)
    svg = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {} {}"><rect width="{}" height="{}" fill="red"/></svg>'
    (folder / "tall.svg").write_text(svg.format(10, 20, 10, 20))
    (folder / "flat.SVG").write_text(svg.format(20, 10, 20, 10))
    build(tmp_path)
    library = EmojiLibrary(tmp_path / "data")
    for name, drawn in {
        "wide": (slice(8, 24), slice(0, 32)), "clear": (slice(8, 24), slice(8, 24)),
        "tall": (slice(0, 32), slice(8, 24)), "flat": (slice(8, 24), slice(0, 32)),
    }.items():  # fmt: skip
        expected = torch.ones(3, SIZE, SIZE)
        expected[1:][(slice(None), *drawn)] = 0
        # JPEG and the rim of an area that is not on the pixels' grid are no more exact.
        assert (library.image("kinds", name) - expected).abs().mean() < 0.02, name


def test_what_cannot_be_used_is_left_out_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = make_folder(tmp_path / "mine", ink=12, few=3) / "ink"
    (folder / "notes.psd").write_bytes(b"8BPS")
    (folder / "broken.png").write_bytes(b"\x89PNG junk")
    (folder / "torn.svg").write_text("no svg")
    (folder / "half.svg").write_bytes(b"\xff\xfe")
    picture(1, (6, 6)).crop((0, 0, 6, 6)).save(folder / "tiny.png")
    Image.new("RGB", (40, 40), "white").save(folder / "white.png")
    picture(33).save(folder / "zz copy of d.png")
    picture(4).save(folder / "Thing A.webp")
    (folder / ".hidden.png").write_bytes(b"")
    (folder / os.fsdecode(b"\xff.png")).write_bytes((folder / "thing a.png").read_bytes())
    with caplog.at_level(logging.INFO):
        index = build(tmp_path)
    counts = {reason: len(files) for reason, files in index["skipped"].items()}
    assert counts == {
        "not a picture": 1, "another of the same name": 1, "a name that is not UTF-8": 1, "unreadable": 3,
        "too small": 1, "blank": 1, "duplicate": 1, "of a style with fewer than 8 pictures to train on": 3,
    }  # fmt: skip
    assert index["skipped"]["duplicate"] == ["ink/zz copy of d.png"] and "ink/tiny.png" in caplog.text
    assert count_skipped(index["skipped"]).startswith("12 left out: 1 not a picture, ")
    library = EmojiLibrary(tmp_path / "data")
    assert library.styles == ["ink"] and len(library.keys["ink"]) == 12


def test_captions_from_the_nearest_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = make_folder(tmp_path / "mine", ink=12, oil=12)
    ink = root / "ink"
    (ink / "thing a.txt").write_text("\ufefffrom\n text ", encoding="utf-8")
    (ink / "thing b.json").write_text('{"caption": "from its json", "tags": [1]}')
    (ink / "captions.json").write_text(json.dumps({"thing b.png": "no", "thing c.png": "from folder, ü"}))
    texts = {"ink/thing c.png": "no", "ink/thing d.png": {"caption": "from root"}, "ink/99.png": "nobody"}
    (root / "captions.json").write_text(json.dumps(texts))
    (ink / "thing e.txt").write_text("")
    with caplog.at_level(logging.WARNING):
        build(tmp_path)
    assert "1 pictures" in caplog.text
    library = EmojiLibrary(tmp_path / "data")

    def names(style: str) -> list[str]:
        return [library.entry(style, f"thing {letter}")["name"] for letter in "abcde"]

    assert names("ink") == ["from text", "from its json", "from folder, ü", "from root", "thing e"]
    # The other style's pictures of these names have no words of their own.
    assert [name in ("thing a", "from text") for name in names("oil")][:1] == [True]


def test_a_style_s_own_words_for_a_name_that_both_have(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "mine", ink=12, oil=12)
    (root / "ink" / "thing a.txt").write_text("a pale moon")
    (root / "oil" / "thing a.txt").write_text("a dark moon")
    build(tmp_path)
    library = EmojiLibrary(tmp_path / "data")
    assert [library.entry(style, "thing a")["name"] for style in ("ink", "oil")] == ["a pale moon", "a dark moon"]
    rng = np.random.default_rng(0)
    drawn = [library.caption("oil", "thing a", rng) for _ in range(50)]
    assert all(caption.startswith("a dark moon") and not caption.endswith(", ") for caption in drawn)


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"thing a.png": 5}', '{"thing a.png": "\\ud800"}', "[" * 5000, b"\xff\xfe\x00"]
)
def test_bad_captions_are_one_clear_error(tmp_path: Path, content: str | bytes) -> None:
    root = make_folder(tmp_path / "mine", ink=2)
    (root / "captions.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ContextDiffusionError, match=r"captions\.json"):
        read_captions(root, list(root.glob("ink/*.png")))
    (root / "captions.json").unlink()
    (root / "ink" / "thing a.txt").write_bytes(b"\xff\xff")
    with pytest.raises(ContextDiffusionError, match=r"thing a\.txt"):
        read_captions(root, list(root.glob("ink/*.png")))


def test_folders_that_cannot_be_a_data_set(tmp_path: Path) -> None:
    def refused(match: str, images: Path, out: Path = tmp_path / "data") -> None:
        with pytest.raises(ContextDiffusionError, match=match):
            build_folder(out, images, SIZE, 1, quiet=True)
        assert not (out / "index.json").exists()

    refused("does not exist", tmp_path / "nowhere")
    flat = tmp_path / "flat"
    flat.mkdir()
    refused("no subfolders.*STYLE/PICTURE", flat)
    picture(1).save(flat / "a.png")
    refused("is a file", flat / "a.png")
    (tmp_path / "void" / "empty").mkdir(parents=True)
    refused("no style with 8 pictures.*none left out", tmp_path / "void")
    refused("no style with 8 pictures.*5 of a style with fewer", make_folder(tmp_path / "small", ink=5))
    mine = make_folder(tmp_path / "mine", ink=12)
    refused("lie in each other", mine, mine / "ink" / "data")
    refused("lie in each other", mine, mine)
    with pytest.raises(ContextDiffusionError, match="from 0 up to"):
        build_folder(tmp_path / "data", mine, SIZE, 1, heldout=1.0)


def test_a_second_run_makes_what_is_missing_or_changed(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "mine", ink=12)
    first = build(tmp_path, heldout=0)
    assert not any(entry["heldout"] for entry in first["emoji"].values())
    before = EmojiLibrary(tmp_path / "data")
    images = tmp_path / "data" / "images" / "ink"
    times = {path: path.stat().st_mtime_ns for path in images.glob("*.png")}
    assert build(tmp_path, heldout=0) == first
    assert {path: path.stat().st_mtime_ns for path in images.glob("*.png")} == times
    # Another picture of the same name: pixels, cache and the name of the whole change.
    picture(99).save(root / "ink" / "thing c.png")
    os.utime(root / "ink" / "thing c.png", (2e9, 2e9))
    (images / "thing d.png").unlink()
    build(tmp_path, heldout=0)
    after = EmojiLibrary(tmp_path / "data")
    assert after.digest != before.digest
    changed = {key for key in after.keys["ink"] if not torch.equal(after.image("ink", key), before.image("ink", key))}
    assert changed == {"thing c"}
    # A picture that is gone must not stay in the data set without an entry.
    (root / "ink" / "thing e.png").unlink()
    with pytest.raises(ContextDiffusionError, match="another --out folder"):
        build(tmp_path, heldout=0)
