"""The emoji data: names, the split, captions, and the data set on disk and in memory."""

import hashlib
import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from context_diffusion.data.captions import COLOR_NAMES, dominant_colors, emoji_caption, nearest_color_names
from context_diffusion.data.library import EmojiLibrary, background_mask
from context_diffusion.data.sources import emoji as emoji_module
from context_diffusion.data.sources.emoji import build_emoji, emoji_attribution, split_heldout, take_subset
from context_diffusion.data.sources.emoji_styles import (
    STYLES,
    emoji_key,
    has_skin_tone,
    slugify,
)
from context_diffusion.errors import ContextDiffusionError

from .archives import archive_bytes


@pytest.mark.parametrize(
    "name, slug",
    [
        ("man’s shoe", "mans-shoe"),
        ("piñata", "pinata"),
        ("Mrs. Claus", "mrs-claus"),
        ("ON! arrow", "on-arrow"),
        ("input symbol & letters", "input-symbol-and-letters"),
        ("keycap: *", "keycap-*"),
        ("  white   flag ", "white-flag"),
    ],
)
def test_slugs(name, slug):
    assert slugify(name) == slug


def test_keys():
    assert emoji_key("1F3D5-FE0F") == "1f3d5"
    assert emoji_key("1F43B-200D-2744-FE0F") == "1f43b-200d-2744"
    assert has_skin_tone("1f44b-1f3fd") and not has_skin_tone("1f44b") and not has_skin_tone("1f3f4")


def test_styles_are_those_of_the_plan():
    assert len(STYLES) == 9 and len({style.name for style in STYLES}) == 9
    assert {style.name for style in STYLES if style.heldout} == {"emojione", "fluent-high-contrast"}
    # A held-out style has no word that training could have tied to it.
    assert all(bool(style.words) != style.heldout for style in STYLES)
    for style in STYLES:
        assert style.package.attribution in emoji_attribution()


class TestSplit:
    GROUPS = {f"{group}{i}": group for group, count in (("a", 100), ("b", 37), ("c", 4)) for i in range(count)}

    def test_the_same_share_of_every_group(self):
        found = Counter(self.GROUPS[key] for key in split_heldout(self.GROUPS))
        assert found == {"a": 15, "b": 6, "c": 1}

    def test_order_and_other_groups_do_not_matter(self):
        expected = split_heldout(self.GROUPS)
        shuffled = list(self.GROUPS.items())
        np.random.default_rng(1).shuffle(shuffled)
        assert split_heldout(dict(map(tuple, shuffled))) == expected
        only_a = {key: group for key, group in self.GROUPS.items() if group == "a"}
        assert split_heldout(only_a) == {key for key in expected if key.startswith("a")}

    def test_it_is_fixed(self):
        """The order by SHA-256, written out: the split must never change between releases."""
        keys = [key for key, group in self.GROUPS.items() if group == "c"]
        seed = "context-diffusion emoji split 1"
        first = min(keys, key=lambda key: hashlib.sha256(f"{seed}:{key}".encode()).hexdigest())
        assert {key for key in split_heldout(self.GROUPS) if key.startswith("c")} == {first}

    def test_shares(self):
        assert split_heldout(self.GROUPS, 0) == set()
        assert split_heldout(self.GROUPS, 1) == set(self.GROUPS)


class TestSubset:
    EMOJI = {f"{number:x}": {"heldout": number % 7 == 0} for number in range(200)}

    def test_a_smaller_one_is_a_part_of_a_larger_one(self):
        subsets = [take_subset(self.EMOJI, limit) for limit in (1, 40, 41, 200, 900)]
        assert [len(subset) for subset in subsets] == [1, 40, 41, 200, 200]
        for smaller, larger in zip(subsets, subsets[1:], strict=False):
            assert smaller.items() <= larger.items()
        assert subsets[-1] == self.EMOJI

    def test_entries_and_their_order_stay(self):
        subset = take_subset(self.EMOJI, 60)
        assert list(subset) == [key for key in self.EMOJI if key in subset]
        assert all(entry is self.EMOJI[key] for key, entry in subset.items())

    def test_it_is_fixed_whatever_the_order(self):
        """The order by SHA-256, written out: the subset must not change between releases."""
        seed = "context-diffusion emoji subset 1"
        first = sorted(self.EMOJI, key=lambda key: hashlib.sha256(f"{seed}:{key}".encode()).hexdigest())[:30]
        backwards = dict(reversed(self.EMOJI.items()))
        assert set(take_subset(self.EMOJI, 30)) == set(take_subset(backwards, 30)) == set(first)


def test_background_is_the_white_that_touches_the_border():
    image = np.full((20, 20, 3), 255, np.uint8)
    image[5:15, 5:15] = (200, 30, 30)
    image[8:12, 8:12] = 255  # white inside the drawing
    image[5, 5:15] = (230, 190, 190)  # an antialiased upper edge
    mask = background_mask(image)
    assert (mask[0] == 255).all() and (mask[:, 19] == 255).all() and mask[4, 4] == 255
    assert (mask[9:11, 9:11] == 0).all() and mask[7, 7] == 0
    assert (mask[5, 6:14] == 190).all()
    assert mask.dtype == np.uint8 and mask.shape == (20, 20)


def test_background_of_full_and_empty_images():
    assert (background_mask(np.full((8, 8, 3), 255, np.uint8)) == 255).all()
    full = background_mask(np.zeros((8, 8, 3), np.uint8))
    assert (full == 0).all()


def test_color_names():
    for index, (name, value) in enumerate(COLOR_NAMES.items()):
        assert nearest_color_names(np.array([value]))[0] == index, name
    image = np.full((40, 40, 3), 255, np.uint8)
    background = np.full((40, 40), 255, np.uint8)
    background[:, :30] = 0
    image[:, :20], image[:, 20:28], image[:, 28:30] = (220, 45, 45), (50, 115, 210), (75, 160, 70)
    # 20, 8 and 2 of 30 columns are drawn: green covers too little, and the white ground is no color.
    assert dominant_colors(image, background) == ["red", "blue"]
    assert dominant_colors(image, background, most=1) == ["red"]
    assert dominant_colors(image, np.full((40, 40), 255, np.uint8)) == []


ENTRY = {
    "name": "full moon",
    "group": "travel places",
    "subgroup": "sky weather",
    "keywords": ["night", "lunar", "round"],
}


def test_captions():
    assert emoji_caption(ENTRY, "noto style", ["yellow", "tan"]) == "full moon, sky weather, noto style, yellow and tan"
    assert emoji_caption(ENTRY, "", []) == "full moon, sky weather"
    drawn = [emoji_caption(ENTRY, "noto style", ["yellow", "tan"], np.random.default_rng(seed)) for seed in range(300)]
    again = emoji_caption(ENTRY, "noto style", ["yellow", "tan"], np.random.default_rng(7))
    assert drawn[7] == again
    for words in (
        "full moon",
        "lunar",
        "sky weather",
        "travel places",
        "noto style",
        "yellow",
        "yellow and tan",
    ):
        assert 0 < sum(words in caption for caption in drawn) < 300, words
    known = {
        "full moon",
        "night",
        "lunar",
        "round",
        "sky weather",
        "travel places",
        "noto style",
        "yellow",
        "yellow and tan",
    }
    assert all(set(caption.split(", ")) <= known for caption in drawn)


@pytest.fixture
def data(tmp_path):
    """Two styles, one of them held out, of three emoji."""
    rng = np.random.default_rng(0)
    emoji = {key: {**ENTRY, "name": key, "heldout": key == "c"} for key in "abc"}
    styles = {"one": {"words": "style one", "heldout": False}, "two": {"words": "", "heldout": True}}
    for style, keys in (("one", "abc"), ("two", "bc")):
        (tmp_path / "images" / style).mkdir(parents=True)
        for key in keys:
            pixels = np.full((16, 16, 3), 255, np.uint8)
            pixels[4:12, 4:12] = rng.integers(0, 200, 3)
            Image.fromarray(pixels).save(tmp_path / "images" / style / f"{key}.png")
    (tmp_path / "index.json").write_text(json.dumps({"format": 1, "size": 16, "emoji": emoji, "styles": styles}))
    return tmp_path


def test_library(data):
    library = EmojiLibrary(data)
    assert (library.train_styles, library.heldout_styles) == (["one"], ["two"])
    assert library.train_keys == {"one": ["a", "b"]}
    assert library.heldout_keys == {"one": ["c"], "two": ["c"]}
    assert library.has("one", "a") and not library.has("two", "a")
    batch = library.batch("two", ["c", "b"])
    assert batch.shape == (2, 3, 16, 16)
    for image, key in zip(batch, "cb", strict=True):
        expected = np.asarray(Image.open(data / "images" / "two" / f"{key}.png")) / 255
        assert np.abs(image.permute(1, 2, 0).numpy() - expected).max() < 1e-6
    ground = library.background("one", ["a"])
    assert ground.shape == (1, 1, 16, 16) and ground[0, 0, 0, 0] == 1 and ground[0, 0, 8, 8] == 0
    assert library.caption("one", "a").startswith("a, sky weather, style one, ")


def test_library_notices_new_images(data):
    EmojiLibrary(data)
    (data / "images" / "two" / "b.png").rename(data / "images" / "two" / "d.png")
    Image.new("RGB", (16, 16), "red").save(data / "images" / "two" / "a.png")
    library = EmojiLibrary(data)
    assert library.keys["two"] == ["a", "c", "d"]
    assert library.image("two", "a")[0].mean() == 1 and library.image("two", "a")[1].mean() == 0


def test_images_of_another_size_are_not_taken_for_this_runs(data):
    with pytest.raises(ContextDiffusionError, match="16 pixels and --size is 128"):
        build_emoji(data, 128)
    assert not (data / "packages").exists(), "found out before anything is fetched"


def svg(color, size=16):
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16">{square(color, size)}</svg>'.encode()


def square(color, size=16):
    return f'<rect width="{size}" height="{size}" fill="{color}"/>'


def write_tiny_packages(folder):
    """What three of the styles and the captions are made of, for a face, the sun, a flag and a skin tone."""
    names = {"😀": "Grinning face", "☀️": "Sun", "🏁": "chequered flag", "👍🏽": "thumbs up"}
    groups = {"😀": "Smileys & Emotion", "☀️": "Travel & Places", "🏁": "Flags", "👍🏽": "People & Body"}
    sheet = {"width": 16, "height": 16, "icons": {"sun": {"body": square("#00ff00", 8)}}}
    files = {
        "openmoji": {
            "data/openmoji.json": [{"hexcode": "1F600", "subgroups": "face-smiling"}],
            **{f"color/svg/{key}.svg": svg("#ff0000") for key in ("1F600", "2600", "1F3C1", "1F44D-1F3FD")},
            **{f"black/svg/{key}.svg": svg("#000000") for key in ("1F600", "2600")},
        },
        "@iconify-json/noto": {"icons.json": sheet, "chars.json": {"2600-fe0f": "sun", "1f3c1": "sun"}},
        "unicode-emoji-json": {
            "data-by-emoji.json": {one: {"name": names[one], "group": groups[one]} for one in names}
        },
        "emojilib": {"dist/emoji-en-US.json": {"😀": ["grinning_face", "happy_day", ":-)"], "☀️": ["warm"]}},
        "emojibase-data": {"en/data.json": [{"hexcode": "1F600", "tags": ["cheerful"]}, {"hexcode": "2600"}]},
    }
    archives = {}
    for number, (package, contents) in enumerate(files.items()):
        archives[package] = folder / f"{number}.tgz"
        contents = {k: v if isinstance(v, bytes) else json.dumps(v).encode() for k, v in contents.items()}
        archives[package].write_bytes(archive_bytes(contents))
    return archives


def test_building_the_data_set_goes_on_after_a_kill(tmp_path, monkeypatch):
    pytest.importorskip("resvg_py")
    archives = write_tiny_packages(tmp_path)
    styles = [style for style in STYLES if style.name in ("openmoji", "openmoji-black", "noto")]
    monkeypatch.setattr(emoji_module, "fetch_package", lambda package, folder: archives[package.name])

    def killed(archive, slugs):
        raise KeyboardInterrupt

    monkeypatch.setattr(emoji_module, "STYLES", (*styles[:2], replace(styles[2], pictures=killed)))
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        build_emoji(out, 32, workers=1, quiet=True)
    assert not (out / "index.json").exists(), "it says that the data set is whole"
    kept, lost = (out / "images" / "openmoji" / f"{key}.png" for key in ("1f600", "2600"))
    written = kept.stat().st_mtime_ns
    lost.unlink()

    monkeypatch.setattr(emoji_module, "STYLES", tuple(styles))
    index = build_emoji(out, 32, workers=1, quiet=True)
    assert kept.stat().st_mtime_ns == written
    assert json.loads((out / "index.json").read_text(encoding="utf-8")) == index
    assert {style: info["images"] for style, info in index["styles"].items()} == {
        "openmoji": 2,
        "openmoji-black": 2,
        "noto": 1,
    }
    face = {"name": "grinning face", "group": "smileys emotion", "subgroup": "face smiling", "heldout": False}
    assert index["emoji"]["1f600"] == {**face, "keywords": ["happy day", "cheerful"]}
    assert set(index["emoji"]) == {"1f600", "2600"}, "neither flags nor skin tones"
    library = EmojiLibrary(out)
    assert library.keys == {"openmoji": ["1f600", "2600"], "openmoji-black": ["1f600", "2600"], "noto": ["2600"]}
    assert library.image("openmoji", "2600").mean((1, 2)).tolist() == [1, 0, 0]
    green, white = library.image("noto", "2600")[:, 2, 2], library.image("noto", "2600")[:, 20, 20]
    assert (green.tolist(), white.tolist()) == ([0, 1, 0], [1, 1, 1])


def test_a_data_set_of_some_emoji(tmp_path, monkeypatch):
    pytest.importorskip("resvg_py")
    archives = write_tiny_packages(tmp_path)
    styles = tuple(style for style in STYLES if style.name in ("openmoji", "openmoji-black"))
    monkeypatch.setattr(emoji_module, "slug_table", lambda archives: {})
    monkeypatch.setattr(emoji_module, "fetch_package", lambda package, folder: archives[package.name])
    monkeypatch.setattr(emoji_module, "STYLES", styles)
    # A split that shows over how many emoji it was drawn.
    monkeypatch.setattr(emoji_module, "split_heldout", lambda groups: set(groups) if len(groups) == 2 else set())
    whole = build_emoji(tmp_path / "whole", 32, workers=1, quiet=True)
    out = tmp_path / "out"
    one = build_emoji(out, 32, workers=1, quiet=True, limit=1)
    (key,) = one["emoji"]
    # The split is that of the whole set.
    assert one["emoji"][key] == whole["emoji"][key] and one["emoji"][key]["heldout"]
    assert {style: info["images"] for style, info in one["styles"].items()} == {style.name: 1 for style in styles}
    assert EmojiLibrary(out).keys == {style.name: [key] for style in styles}
    # Growing goes on from what is there; a kill in its middle leaves no index that names too few.
    with monkeypatch.context() as patch:
        patch.setattr(emoji_module, "emoji_attribution", lambda: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            build_emoji(out, 32, workers=1, quiet=True, limit=2)
    assert not (out / "index.json").exists()
    assert build_emoji(out, 32, workers=1, quiet=True, limit=2) == whole
    assert EmojiLibrary(out).keys == EmojiLibrary(tmp_path / "whole").keys
    # Shrinking would leave images that no entry names.
    with pytest.raises(ContextDiffusionError, match="more emoji than --limit 1: give another --out"):
        build_emoji(out, 32, workers=1, quiet=True, limit=1)


@pytest.mark.parametrize("damage", ["no folder", "no index", "half an index", "no images"])
def test_library_of_an_unfinished_data_set(data, damage):
    folder = data / "absent" if damage == "no folder" else data
    if damage == "no index":
        (data / "index.json").unlink()
    if damage == "half an index":
        (data / "index.json").write_text((data / "index.json").read_text()[:50])
    if damage == "no images":
        for path in (data / "images" / "two").iterdir():
            path.unlink()
    with pytest.raises(ContextDiffusionError, match="context-diffusion data emoji"):
        EmojiLibrary(folder)
