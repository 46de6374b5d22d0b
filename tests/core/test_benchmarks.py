"""The benchmarks: their documented commands are understood, and what reads a table's folder reads it as it was made."""

import json
import re
import shlex
from importlib import import_module

import pytest
import torch
from torch.nn import functional

from context_diffusion.data.library import EmojiLibrary
from context_diffusion.evaluation.cases.case import Cell
from context_diffusion.evaluation.cases.selection import Selection
from context_diffusion.evaluation.cases.table import TableCases
from context_diffusion.evaluation.chunks import claim_folder, save_chunk
from context_diffusion.evaluation.plan import Plan

from .test_package import DOCUMENTS, ROOT, shell_commands
from .tiny_data import write_tiny_data


def benchmark_commands(document):
    """Every `python -m benchmarks.NAME ...` of a document, in a shell code block or in its text, as words from NAME."""
    prose = re.sub(r"^```.*?^```$", "", (ROOT / document).read_text(encoding="utf-8"), flags=re.M | re.S)
    in_prose = re.findall(r"`(?:\w+=\S+\s+)*(python\s+-m\s+benchmarks\.[^`]+)`", prose)
    for words in (*shell_commands(document), *map(shlex.split, in_prose)):
        if " ".join(words).startswith("python -m benchmarks."):
            yield [words[2].removeprefix("benchmarks."), *words[3:]]


def test_documented_commands_are_understood():
    found = [words for document in DOCUMENTS for words in benchmark_commands(document)]
    names = {words[0] for words in found}
    assert names >= {"heldout_loss", "icon_sets", "own_style", "samplers", "training_precision", "what_kid_sees"}
    for name, *words in found:
        try:
            import_module(f"benchmarks.{name}").build_parser().parse_args(words)
        except SystemExit as leaving:
            raise AssertionError(f"python -m benchmarks.{name} {' '.join(words)}") from leaving


@pytest.mark.parametrize("batch_size", [2, 4, 32])
def test_what_kid_sees_reads_a_table_of_any_batch_size(tmp_path, batch_size):
    """A table whose outputs are the truths: nothing deviates, whatever the size of its files."""
    from benchmarks.what_kid_sees import rows_of

    library, count = EmojiLibrary(write_tiny_data(tmp_path / "data")), 5
    folder = tmp_path / "table" / "images" / "copier-0"
    claim_folder(folder, {"batch_size": batch_size})
    (tmp_path / "table" / "table.json").write_text(json.dumps({"protocol": {"main_k": 3, "count": count}}))
    plan = Plan(TableCases(library, Selection(count=count, ks=(3,))), 1, batch_size)
    for part in ("seen", "unseen"):
        images = plan.case_set.control(Cell(part, "softedge", "truth"))
        for setting in ("cp", "c"):
            for chunk in plan.cell_chunks(Cell(part, "softedge", setting, 3), 0):
                save_chunk(plan.path(folder, chunk), images[chunk.start : chunk.stop])

    def embed(images: torch.Tensor) -> torch.Tensor:
        return functional.avg_pool2d(images, 8).flatten(1)

    rows = rows_of(tmp_path / "table", library, ["softedge"], embed)
    assert [row[:4] for row in rows] == [
        [part, "softedge", setting, "copier-0"] for part in ("seen", "unseen") for setting in ("cp", "c")
    ]
    for row in rows:
        kid, *_, deviation, off = (abs(float(value)) for value in row[4:])
        assert kid == deviation == off == 0
