"""The table's cases and cells: which emoji, which pictures."""

import pytest
import torch

from context_diffusion.errors import ContextDiffusionError
from context_diffusion.evaluation.cases.case import Cell
from context_diffusion.evaluation.cases.pictures import context_queries, contexts, prompts, queries, truths
from context_diffusion.evaluation.cases.selection import Selection
from context_diffusion.evaluation.cases.table import TableCases, table_cases
from context_diffusion.evaluation.cases.tasks import TASKS
from context_diffusion.maps import make_map

from ...tiny_data import SIZE
from ..stand_ins import Library


@pytest.fixture(scope="module")
def case_set(library):
    return TableCases(library, Selection(ks=(1, 2, 3), count=5))


@pytest.fixture(scope="module")
def cases(case_set):
    return case_set.parts


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


def test_k_context_images_are_the_first_k_and_never_the_target(library, case_set):
    for name, task in TASKS.items():
        chosen = case_set.cases(Cell("seen", name, "c", 1))
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
        contexts(library, TASKS["softedge"], case_set.parts["seen"], 5)


def test_queries_show_what_the_task_says(library, case_set):
    seen = case_set.parts["seen"]
    images = truths(library, "image", seen)
    for name in ("softedge", "segmentation", "depth", "canny", "scribble", "normal"):
        assert torch.equal(queries(library, TASKS[name], seen), make_map(images, name))
    for name in ("softedge", "segmentation", "depth"):
        task = TASKS[f"to-{name}"]
        assert torch.equal(queries(library, task, seen), images)
        assert torch.equal(truths(library, task.target, seen), make_map(images, name))
        assert all("map" in prompt for prompt in prompts(library, task, seen))
    sketched = case_set.cases(Cell("seen", "sketch", "p"))
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


class LonelyLibrary(Library):
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
