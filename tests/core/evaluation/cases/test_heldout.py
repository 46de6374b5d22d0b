"""The held-out protocol's cases: what is drawn, what is shown."""

import pytest
import torch

from context_diffusion.errors import ContextDiffusionError
from context_diffusion.evaluation.cases.heldout import PARTS, TASK, heldout_cases
from context_diffusion.evaluation.cases.pictures import contexts, truths
from context_diffusion.evaluation.cases.tasks import TASKS

from ..stand_ins import Library


@pytest.fixture
def cases():
    return heldout_cases(Library(), seen=12, unseen=5, transforms=6)


def test_cases_are_held_out_fixed_and_never_leak_their_target(cases):
    assert [sum(case.part == part for case in cases) for part in PARTS] == [12, 5, 6]
    assert cases == heldout_cases(Library(), seen=12, unseen=5, transforms=6)
    for case in cases:
        assert case.key not in case.context
        assert len(set(case.context)) == 3
        assert {case.key, *case.context} <= set(Library.everything[::3])
        assert case.other_style != case.style
        assert all(Library().has(case.other_style, key) for key in case.context)
        assert (case.style in Library.heldout_styles) == (case.part == "unseen")
        assert (case.transform is not None) == (case.part == "transforms")
    with pytest.raises(ContextDiffusionError, match="ask for fewer"):
        heldout_cases(Library(), seen=60)


def test_context_is_often_of_the_targets_group():
    library = Library()

    def share(group_share):
        drawn = heldout_cases(library, seen=36, unseen=12, transforms=0, group_share=group_share)
        hits = [library.group(key) == library.group(case.key) for case in drawn for key in case.context]
        return sum(hits) / len(hits)

    assert share(1.0) == 1 and share(0.0) < share(0.7)


def test_shuffled_context_is_the_same_content_in_another_style(cases):
    case = cases[0]
    right, wrong = (contexts(Library(), TASKS[TASK], [case], 3, shuffled) for shuffled in (False, True))
    difference = (Library.styles.index(case.other_style) - Library.styles.index(case.style)) * 0.2
    assert torch.allclose(wrong - right, torch.full_like(right, difference), atol=1e-6)
    moved = [case for case in cases if case.part == "transforms"][:1]
    assert not torch.allclose(truths(Library(), "image", moved), Library().batch(moved[0].style, [moved[0].key]))
