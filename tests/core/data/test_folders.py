"""Episodes over plain image folders."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch
from PIL import Image

from context_diffusion import ContextDiffusionError
from context_diffusion.data.folders import ImageFolderDataset


def make_folder(root: Path, **counts: int) -> Path:
    """Each picture is of one colour that names its style (red) and its number (green)."""
    for style_number, (style, count) in enumerate(sorted(counts.items())):
        (root / style).mkdir(parents=True)
        for number in range(count):
            picture = Image.new("RGB", (20, 12), (10 * style_number, 10 * number, 255))
            picture.save(root / style / f"{number}.png")
    return root


def names(images: torch.Tensor) -> list[tuple[int, int]]:
    """(style, number) of every picture of a batch, read from its pixels."""
    return [tuple(round(value.item() * 25.5) for value in image[:2].mean(dim=(1, 2))) for image in images]


def test_context_comes_from_the_same_folder_and_never_holds_the_target(tmp_path: Path) -> None:
    data = ImageFolderDataset(make_folder(tmp_path, ink=4, oil=6), size=16, k=3)
    assert len(data) == 10
    generator = torch.Generator().manual_seed(0)
    for index in range(len(data)):
        for _ in range(10):
            episode = data.sample(index, 3, generator)
            assert episode["target"].shape == (3, 16, 16) and episode["context"].shape == (3, 3, 16, 16)
            [target], context = names(episode["target"][None]), names(episode["context"])
            assert target == ((0, index) if index < 4 else (1, index - 4))
            assert episode["style"] == ("ink" if index < 4 else "oil")
            assert len(set(context)) == 3 and target not in context
            assert {style for style, _ in context} == {target[0]}


def test_every_other_picture_is_chosen_equally_often(tmp_path: Path) -> None:
    data = ImageFolderDataset(make_folder(tmp_path, oil=5), size=4, k=1)
    generator = torch.Generator().manual_seed(0)
    chosen = [names(data.sample(2, 1, generator)["context"])[0][1] for _ in range(400)]
    counts = [chosen.count(number) for number in range(5)]
    assert counts[2] == 0 and all(70 <= counts[number] <= 130 for number in (0, 1, 3, 4))


def test_items_depend_on_seed_and_epoch_alone(tmp_path: Path) -> None:
    root = make_folder(tmp_path, oil=12)

    def contexts(data: ImageFolderDataset) -> list[list[tuple[int, int]]]:
        return [names(data[index]["context"]) for index in range(len(data))]

    first = contexts(ImageFolderDataset(root, size=4, k=3, seed=1))
    data = ImageFolderDataset(root, size=4, k=3, seed=1)
    data[5]
    assert contexts(data) == first
    data.set_epoch(1)
    assert contexts(data) != first
    assert contexts(ImageFolderDataset(root, size=4, k=3, seed=2)) != first
    torch.testing.assert_close(data[-1]["target"], data[11]["target"])
    with pytest.raises(IndexError):
        data[12]


def test_data_loader(tmp_path: Path) -> None:
    data = ImageFolderDataset(make_folder(tmp_path, ink=3, oil=3), size=(8, 16), k=2)
    batches = list(torch.utils.data.DataLoader(data, batch_size=4))
    assert batches[0]["context"].shape == (4, 2, 3, 8, 16) and batches[0]["style"] == ["ink"] * 3 + ["oil"]
    assert data.sample(0, 0)["context"].shape == (0, 3, 8, 16)


def test_captions(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_folder(tmp_path, ink=4, oil=2)
    (tmp_path / "ink" / "0.txt").write_text("from text\n", encoding="utf-8")
    (tmp_path / "ink" / "captions.json").write_text(json.dumps({"0.png": "no", "1.png": "from folder, ü"}))
    root_captions = {"ink/1.png": "no", "ink/2.png": "from root", "ink/99.png": "nobody"}
    (tmp_path / "captions.json").write_text(json.dumps(root_captions))
    with caplog.at_level(logging.WARNING):
        data = ImageFolderDataset(tmp_path, size=4, k=1)
    captions = [data.sample(index, 1)["caption"] for index in range(6)]
    assert captions == ["from text", "from folder, ü", "from root", "", "", ""]
    assert "1 pictures" in caplog.text


@pytest.mark.parametrize("content", ["{", "[]", '{"0.png": 5}', b"\xff\xfe\x00"])
def test_bad_captions(tmp_path: Path, content: str | bytes) -> None:
    make_folder(tmp_path, ink=2)
    (tmp_path / "captions.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ContextDiffusionError, match=r"captions\.json"):
        ImageFolderDataset(tmp_path, k=1)


def test_bad_text_caption(tmp_path: Path) -> None:
    make_folder(tmp_path, ink=2)
    (tmp_path / "ink" / "1.txt").write_bytes(b"\xff\xff")
    with pytest.raises(ContextDiffusionError, match=r"1\.txt"):
        ImageFolderDataset(tmp_path, k=1)


def test_bad_folders(tmp_path: Path) -> None:
    with pytest.raises(ContextDiffusionError, match="does not exist"):
        ImageFolderDataset(tmp_path / "nowhere")
    (tmp_path / "flat").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "flat" / "a.png")
    with pytest.raises(ContextDiffusionError, match="no subfolders"):
        ImageFolderDataset(tmp_path / "flat")
    with pytest.raises(ContextDiffusionError, match="is a file"):
        ImageFolderDataset(tmp_path / "flat" / "a.png")
    with pytest.raises(ContextDiffusionError, match="lonely.* 1 pictures"):
        ImageFolderDataset(make_folder(tmp_path / "one", lonely=1, oil=4))
    (tmp_path / "two" / "empty").mkdir(parents=True)
    with pytest.raises(ContextDiffusionError, match="empty.* 0 pictures"):
        ImageFolderDataset(tmp_path / "two")


def test_too_large_k_and_broken_pictures(tmp_path: Path) -> None:
    make_folder(tmp_path, ink=3)
    with pytest.raises(ContextDiffusionError, match="k is 3"):
        ImageFolderDataset(tmp_path, k=3)
    data = ImageFolderDataset(tmp_path, size=4, k=2)
    with pytest.raises(ContextDiffusionError, match="k is -1"):
        data.sample(0, -1)
    (tmp_path / "ink" / "1.png").write_bytes(b"junk")
    with pytest.raises(ContextDiffusionError, match=r"1\.png"):
        data[1]
