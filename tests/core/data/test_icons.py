"""The icon data: variants of a set, which names are taken, and the data set on disk and in memory."""

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from context_diffusion.data.library import EmojiLibrary
from context_diffusion.data.sources import icons as icons_module
from context_diffusion.data.sources.icon_styles import ICON_SETS, IconSet
from context_diffusion.data.sources.iconify import IconSheet, read_sheet
from context_diffusion.data.sources.icons import build_icons, choose_names, shows, split_variants, words_of
from context_diffusion.data.sources.packages import Package
from context_diffusion.errors import ContextDiffusionError

from ..tiny_data import write_tiny_data
from .archives import archive_bytes

PACKAGE = Package("@scope/lines", "1.0.0", "", "MIT", "Lines, a tester")
LINES = IconSet("lines", PACKAGE, "icon", {"": "thin", "bold": "bold", "bold-duotone": "grey"})


def sheet(*names):
    return IconSheet({name: name.encode() for name in names}, {})


def test_the_sets():
    assert len({icon_set.name for icon_set in ICON_SETS}) == len(ICON_SETS)
    # Nothing that forbids derived works, commerce or another licence than CC BY-SA 4.0 for the weights.
    assert {icon_set.package.licence for icon_set in ICON_SETS} <= {"MIT", "Apache-2.0", "CC-BY-4.0", "ISC"}
    for icon_set in ICON_SETS:
        named = bool(icon_set.words) or all(icon_set.variants.values())
        assert named != icon_set.heldout, "captions name every style, and none that training never sees"


def test_variants_by_the_longest_end():
    drawings = split_variants(LINES, sheet("cat", "cat-bold", "cat-bold-duotone", "bold"))
    assert drawings == {
        "": {"cat": b"cat", "bold": b"bold"},
        "bold": {"cat": b"cat-bold"},
        "bold-duotone": {"cat": b"cat-bold-duotone"},
    }
    # A set without plain names: those with another end are none of its styles.
    ends = IconSet("ends", PACKAGE, "icon", {"line": "line", "fill": "filled"})
    assert split_variants(ends, sheet("cat-line", "cat-fill", "logo")) == {
        "line": {"cat": b"cat-line"},
        "fill": {"cat": b"cat-fill"},
    }


def test_the_best_size_of_each_drawing():
    sizes = IconSet("sizes", PACKAGE, "icon", {"": "color"}, ("48", "24", "16"))
    found = split_variants(sizes, sheet("cat-16", "cat-48", "cat-24", "dog-16", "dog-64"))
    assert found == {"": {"cat": b"cat-48", "dog": b"dog-16"}}


def test_names_show_what_their_words_say():
    assert words_of("Health-care_2") == ["health", "care"]
    tent = [frozenset({"tent"})]
    assert shows("tent", tent) and shows("tent-night-2", tent)
    assert not shows("content", tent) and not shows("rent", tent)
    both = [frozenset({"crescent", "moon"})]
    assert shows("moon-crescent", both) and not shows("moon", both)
    assert not shows("1", [frozenset()]), "a name without words, such as a number's, shows nothing"


def test_names_with_most_variants_first_and_nothing_held_out():
    drawings = {
        "": dict.fromkeys(("cat", "dog", "tent", "tent-night", "fox"), b""),
        "bold": dict.fromkeys(("cat", "dog", "tent"), b""),
    }
    names = choose_names(drawings, ["Tent"], 10)
    assert set(names[:2]) == {"cat", "dog"} and names[2:] == ["fox"]
    assert choose_names(drawings, ["Tent"], 1) == names[:1], "a smaller choice is a part of a larger one"


def test_hidden_icons_and_categories(tmp_path):
    files = {
        "icons.json": {"icons": {"cat": {"body": "<a/>"}, "old": {"body": "<b/>", "hidden": True}}, "width": 24},
        "metadata.json": {"categories": {"AnimalsNature": ["cat"]}},
    }
    (tmp_path / "a.tgz").write_bytes(archive_bytes({name: json.dumps(each).encode() for name, each in files.items()}))
    found = read_sheet(tmp_path / "a.tgz")
    assert set(found.pictures) == {"cat"} and b'viewBox="0 0 24 16"' in found.pictures["cat"]
    assert found.categories == {"cat": "animals nature"}


class TestDataSet:
    COLORS = {"": "black", "bold": "black", "bold-duotone": "grey"}

    @pytest.fixture
    def emoji(self, tmp_path):
        return write_tiny_data(tmp_path / "emoji")

    @pytest.fixture
    def build(self, tmp_path, emoji, monkeypatch):
        """Builds from an archive of twenty-five icons, the names those of the tiny emoji, in three variants."""
        pytest.importorskip("resvg_py")
        index = json.loads((emoji / "index.json").read_text())
        icons = {
            f"{key}{end}": {"body": f'<rect x="4" y="4" width="{6 + number}" height="8" fill="{color}"/>'}
            for number, key in enumerate(index["emoji"])
            for end, color in (("", "black"), ("-bold", "#111"), ("-bold-duotone", "grey"))
        }
        sheet = {"width": 48, "height": 24, "icons": icons}
        categories = {"Shapes": [key for key in index["emoji"] if key.startswith("circle")]}
        archive = tmp_path / "lines.tgz"
        archive.write_bytes(
            archive_bytes(
                {
                    "icons.json": json.dumps(sheet).encode(),
                    "metadata.json": json.dumps({"categories": categories}).encode(),
                }
            )
        )
        monkeypatch.setattr(icons_module, "ICON_SETS", (LINES,))
        monkeypatch.setattr(icons_module, "fetch_package", lambda package, folder: archive)
        return lambda **options: build_icons(tmp_path / "icons", emoji, size=32, workers=1, quiet=True, **options)

    def test_what_is_written(self, build, tmp_path):
        index = build()
        library = EmojiLibrary(tmp_path / "icons")
        assert library.train_styles == ["lines", "lines-bold", "lines-bold-duotone"] and library.heldout_styles == []
        # One mark of each shape is held out among the emoji, whose names have the same words.
        assert len(index["emoji"]) == 20 and all(len(keys) == 20 for keys in library.train_keys.values())
        heldout = {"red circle", "green square", "blue triangle", "orange bar", "purple cross"}
        assert heldout.isdisjoint(" ".join(reversed(entry["name"].split())) for entry in index["emoji"].values())
        assert "Lines, a tester" in (tmp_path / "icons" / "ATTRIBUTION.md").read_text()
        caption = library.caption("lines-bold", "lines.circle-green")
        assert caption.startswith("circle green, shapes, bold icon"), caption
        # Wider than high: centred on white.
        picture = np.asarray(Image.open(tmp_path / "icons" / "images" / "lines" / "lines.bar-red.png"))
        assert picture.shape == (32, 32, 3) and (picture[:8] == 255).all() and picture.min() < 10

    def test_variants_share_their_layout(self, build, tmp_path):
        build()
        library = EmojiLibrary(tmp_path / "icons")
        assert library.same_layout("lines-bold") == ["lines", "lines-bold-duotone"]
        drawn = Counter(library.draw_style(np.random.default_rng(seed)) for seed in range(60))
        assert set(drawn) == set(library.styles)

    def test_a_set_that_is_held_out(self, build, tmp_path, monkeypatch):
        monkeypatch.setattr(icons_module, "ICON_SETS", (replace(LINES, heldout=True),))
        build()
        library = EmojiLibrary(tmp_path / "icons")
        assert library.train_styles == [] and library.heldout_styles[0] == "lines"
        # All of it: what the emoji hold out is kept from training alone.
        assert len(library.heldout_keys["lines"]) == 25

    def test_a_second_run_renders_nothing(self, build, tmp_path):
        build()
        files = {path: path.stat().st_mtime_ns for path in (tmp_path / "icons" / "images").rglob("*.png")}
        assert build() and {path: path.stat().st_mtime_ns for path in files} == files

    def test_fewer_icons_than_there_are_already(self, build):
        build()
        with pytest.raises(ContextDiffusionError, match="images of more icons"):
            build(limit=4)

    def test_the_icons_in_place_of_the_emoji(self, build, emoji, tmp_path):
        build()
        with pytest.raises(ContextDiffusionError, match="is an icon data set: give --emoji"):
            build_icons(tmp_path / "more", tmp_path / "icons", size=32, workers=1, quiet=True)

    def test_without_the_emoji(self, build, emoji):
        (emoji / "index.json").unlink()
        with pytest.raises(ContextDiffusionError, match="data emoji"):
            build()
