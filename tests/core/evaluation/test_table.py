"""The table's protocol: which emoji, which pictures, which cells, and that a killed run goes on."""

import pytest
import torch

from context_diffusion.cli import build_parser
from context_diffusion.data.library import EmojiLibrary
from context_diffusion.errors import ContextDiffusionError
from context_diffusion.evaluation.table.cases import table_cases
from context_diffusion.evaluation.table.command import select
from context_diffusion.evaluation.table.generate import generate_table, load_cell, request
from context_diffusion.evaluation.table.pictures import context_queries, contexts, prompts, queries, truths
from context_diffusion.evaluation.table.plan import Cell, Selection, cell_cases, table_chunks
from context_diffusion.evaluation.table.tasks import TASKS, task_cases
from context_diffusion.maps import make_map

from ..test_package import commands
from ..tiny_data import SIZE, write_tiny_data
from .protocol_stand_ins import Echo, IdentityVAE
from .protocol_stand_ins import Library as HeldoutLibrary

SMALL = Selection(tasks=("softedge", "to-depth", "sketch"), ks=(1, 2, 3), count=5, seeds=2)


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return EmojiLibrary(write_tiny_data(tmp_path_factory.mktemp("data")))


@pytest.fixture(scope="module")
def cases(library):
    return {part: table_cases(library, part, 5) for part in ("seen", "unseen")}


def test_cases_are_held_out_and_a_larger_count_starts_with_a_smaller_one(library, cases):
    for part, found in cases.items():
        styles = library.train_styles if part == "seen" else library.heldout_styles
        assert [case.style for case in found] == [styles[index % len(styles)] for index in range(5)]
        for case in found:
            assert all(library.is_heldout(key) for key in (case.key, *case.context, case.fresh))
            assert case.key not in case.context and len(set(case.context)) == 4
            assert case.style not in (case.other_style, case.drawing_style)
            assert case.sketch == (case.style != "openmoji-black")
    assert cases["seen"][:2] == table_cases(library, "seen", 2)
    # Of a style's first images none is a fresh one while there are twice as many.
    assert not {(c.style, c.key) for c in cases["seen"]} & {(c.style, c.fresh) for c in cases["seen"]}
    with pytest.raises(ContextDiffusionError, match="give at most 15"):
        table_cases(library, "seen", 16)


def test_k_context_images_are_the_first_k_and_never_the_target(library, cases):
    for name, task in TASKS.items():
        chosen = task_cases(task, cases["seen"])
        target = truths(library, task.target, chosen)
        for k in (1, 2, 4):
            found = contexts(library, task, chosen, k)
            assert found.shape == (len(chosen), k, 3, SIZE, SIZE)
            assert torch.equal(found, contexts(library, task, chosen, 4)[:, :k])
            for row, case in enumerate(chosen):
                assert case.key not in case.context[:k]
                if task.target == "image":
                    assert not any(torch.equal(one, target[row]) for one in found[row])
                expected = library.batch(case.style, list(case.context[:k]))
                expected = expected if task.target == "image" else make_map(expected, task.map)
                assert torch.equal(found[row], expected), name
    with pytest.raises(ContextDiffusionError, match="k is 5"):
        contexts(library, TASKS["softedge"], cases["seen"], 5)


def test_queries_show_what_the_task_says(library, cases):
    seen = cases["seen"]
    images = truths(library, "image", seen)
    for name in ("softedge", "segmentation", "depth", "canny", "scribble", "normal"):
        assert torch.equal(queries(library, TASKS[name], seen), make_map(images, name))
    for name in ("softedge", "segmentation", "depth"):
        task = TASKS[f"to-{name}"]
        assert torch.equal(queries(library, task, seen), images)
        assert torch.equal(truths(library, task.target, seen), make_map(images, name))
        assert all("map" in prompt for prompt in prompts(library, task, seen))
    sketched = task_cases(TASKS["sketch"], seen)
    assert 0 < len(sketched) < len(seen)
    drawn = [library.image("openmoji-black", case.key) for case in sketched]
    assert torch.equal(queries(library, TASKS["sketch"], sketched), torch.stack(drawn))
    other = [library.image(case.drawing_style, case.key) for case in seen]
    assert torch.equal(queries(library, TASKS["edit"], seen), torch.stack(other))


def test_shuffled_context_is_another_style_or_another_kind_of_map(library, cases):
    seen = cases["seen"]
    wrong = contexts(library, TASKS["softedge"], seen, 2, shuffled=True)
    for row, case in zip(wrong, seen, strict=True):
        assert torch.equal(row, library.batch(case.other_style, list(case.context[:2])))
    wrong = contexts(library, TASKS["to-depth"], seen, 2, shuffled=True)
    for row, case in zip(wrong, seen, strict=True):
        assert torch.equal(row, make_map(library.batch(case.style, list(case.context[:2])), "softedge"))


def test_example_pairs_are_a_context_image_and_its_own_query(library, cases):
    for name in ("segmentation", "to-depth"):
        task = TASKS[name]
        pairs = zip(
            contexts(library, task, cases["unseen"], 2),
            context_queries(library, task, cases["unseen"], 2),
            strict=True,
        )
        for images, shown in pairs:
            expected = make_map(shown, "depth") if name == "to-depth" else images
            assert torch.equal(images, expected)
            if name == "segmentation":
                assert torch.equal(shown, make_map(images, "segmentation"))

    class Pairs(Echo):
        wants_context_queries = True

    cell = Cell("seen", "softedge", "c", 2)
    assert request(library, cases["seen"], cell, 0, Echo()).context_queries is None
    assert request(library, cases["seen"], cell, 0, Pairs()).context_queries.shape == (5, 2, 3, SIZE, SIZE)


def test_cells_are_what_the_filters_ask_for():
    cells = Selection().cells()
    assert len(set(cells)) == len(cells)
    curve = {(cell.setting, cell.k) for cell in cells if (cell.part, cell.task) == ("unseen", "softedge")}
    curve.remove(("vae", 0))  # of soft edge maps, not of this task
    assert curve == {(s, k) for s in ("cp", "c") for k in (1, 2, 3, 5, 8)} | {
        ("p", 0),
        ("shuffled", 3),
        ("query_only", 0),
    }
    assert {(c.setting, c.k) for c in cells if c.task == "normal"} == {("cp", 3), ("c", 3), ("p", 0)}
    assert {c.task for c in cells if c.setting == "vae"} == {"image", "softedge", "segmentation", "depth"}
    few = Selection(tasks=("edit",), settings=("c",), ks=(2,), curve_tasks=(), parts=("seen",)).cells()
    assert few == [Cell("seen", "image", "vae", 0), Cell("seen", "edit", "c", 2)]
    assert Selection(ks=(1, 5)).main_k == 1 and Selection(ks=(2, 8)).main_k == 2
    for wrong in ({"tasks": ("paint",)}, {"settings": ("x",)}, {"ks": (0,)}, {"count": 1}, {"ks": ()}):
        with pytest.raises(ContextDiffusionError, match="--"):
            Selection(**wrong)


def test_settings_ask_for_what_they_say_from_the_same_noise(library, cases):
    asked = {s: request(library, cases["seen"], Cell("seen", "softedge", s, k), 1) for s, k in
             (("cp", 3), ("c", 3), ("p", 0), ("shuffled", 3), ("query_only", 0))}  # fmt: skip
    has_context = {name: batch.context is not None for name, batch in asked.items()}
    assert has_context == {"cp": True, "c": True, "p": False, "shuffled": True, "query_only": False}
    assert [name for name, batch in asked.items() if batch.prompts is not None] == ["cp", "p"]
    assert len({batch.seeds for batch in asked.values()}) == 1 and len(set(asked["cp"].seeds)) == 5
    assert torch.equal(asked["c"].context, asked["cp"].context)
    assert not torch.equal(asked["c"].context, asked["shuffled"].context)


def test_a_killed_run_goes_on_with_the_same_bytes_and_shards_share_the_work(library, cases, tmp_path):
    chunks = table_chunks(SMALL.cells(), cases, SMALL.seeds, 4)

    def run(folder, sampler=None, **options):
        sampler = sampler or Echo()
        return sampler, generate_table(IdentityVAE(), sampler, library, cases, chunks, tmp_path / folder, **options)

    whole, complete = run("whole")
    assert complete

    class Killed(Echo):
        def generate(self, batch):
            if len(self.asked) == 3:
                raise KeyboardInterrupt
            return super().generate(batch)

    with pytest.raises(KeyboardInterrupt):
        run("parts", Killed())
    first, complete = run("parts", shard=(0, 2))
    assert not complete
    second, complete = run("parts", shard=(1, 2))
    assert complete
    assert 3 + len(first.asked) + len(second.asked) == len(whole.asked)
    for chunk in chunks:
        assert chunk.path(tmp_path / "whole").read_bytes() == chunk.path(tmp_path / "parts").read_bytes()
    vae = load_cell(tmp_path / "parts", Cell("unseen", "depth", "vae", 0), 5, 0, 4)
    assert torch.equal(vae, (truths(library, "depth", cases["unseen"]) * 255).round().to(torch.uint8))
    sketch = Cell("seen", "sketch", "c", 3)
    assert len(load_cell(tmp_path / "parts", sketch, len(cell_cases(sketch, cases)), 1, 4)) == 3
    with pytest.raises(ContextDiffusionError, match="run the generation again"):
        load_cell(tmp_path / "parts", Cell("seen", "softedge", "c", 8), 5, 0, 4)


def test_commands_of_the_documentation_are_understood():
    found = [*commands("docs/evaluation.md"), *commands("docs/results.md")]
    tables = [words for words in found if words[:2] == ["evaluate", "table"]]
    assert len(tables) >= 12
    for words in found:
        try:
            options = build_parser().parse_args(words)
        except SystemExit as leaving:
            raise AssertionError(f"context-diffusion {' '.join(words)}") from leaving
        if words in tables:
            select(options)


class LonelyLibrary(HeldoutLibrary):
    """One emoji is drawn in the first style alone."""

    def has(self, style, key):
        return style == "one" or key != "0"


def test_context_is_drawn_from_what_another_style_draws_too():
    library = LonelyLibrary()
    found = [case for case in table_cases(library, "seen", 36) if case.style == "one"]
    assert len(found) == 12 and "0" in {case.key for case in found}
    for case in found:
        assert len(case.context) == 8 and "0" not in case.context
        assert case.drawing_style is None if case.key == "0" else library.has(case.drawing_style, case.key)
