"""What is measured of images, against pictures whose figures are known."""

import pytest
import torch

from context_diffusion.evaluation.cases.case import Cell
from context_diffusion.evaluation.cases.pictures import contexts, queries, truths
from context_diffusion.evaluation.cases.selection import Selection
from context_diffusion.evaluation.cases.table import TableCases
from context_diffusion.evaluation.chunks import to_pixels
from context_diffusion.evaluation.judges import Judges
from context_diffusion.evaluation.measure import CellMeasurer, Job, Judge
from context_diffusion.evaluation.metrics import rmse
from context_diffusion.evaluation.plan import Plan
from context_diffusion.features.networks import embed_images

from .stand_ins import toy_efficientnet, toy_squeezenet


@pytest.fixture(scope="module")
def measurer(library):
    """Of the table's tasks over five seen cases, with judges that need no data."""

    class Probe:
        def correct(self, features, styles):
            return torch.ones(len(styles), dtype=torch.float64)

    case_set = TableCases(library, Selection(ks=(1,), count=5))
    return CellMeasurer(Plan(case_set, 1, 4), Judges(toy_efficientnet(), toy_squeezenet(), Probe()), None)


def measured_as(measurer, task, pixels):
    """Images measured in the place of a task's outputs."""
    cell = Cell("seen", task, "c", 1)
    case_set = measurer.plan.case_set
    return Judge(case_set, cell, measurer.judges).measure(pixels[None], case_set.figures(cell))


@pytest.mark.parametrize("name", ["softedge", "to-depth"])
def test_copies_have_the_rmse_of_what_is_copied(measurer, name):
    judge = Judge(measurer.plan.case_set, Cell("seen", name, "c", 1), measurer.judges)
    library, cases, task = judge.library, judge.cases, judge.task
    truth = truths(library, task.target, cases)
    for control, images in (
        ("copy_query", queries(library, task, cases)),
        ("copy_context", contexts(library, task, cases, 1)[:, 0]),
    ):
        value = measurer(Job(Cell("seen", name, control))).values["mse"].mean().sqrt()
        assert float(value) == pytest.approx(rmse(images, truth), abs=2e-3)  # pixels are whole numbers of 255


@pytest.mark.parametrize("name", ["softedge", "to-depth"])
def test_the_truth_itself_is_the_floor_of_every_figure(measurer, name):
    truth = Cell("seen", name, "truth")
    itself = measured_as(measurer, name, to_pixels(measurer.plan.case_set.control(truth)))
    assert itself.values["mse"].abs().max() == 0 and itself.values["distance"].abs().max() == 0
    assert itself.values["cosine"].min() == pytest.approx(1)
    if name == "softedge":
        assert itself.values["edge_f1"].min() == 1
    rows = measurer(Job(truth))
    assert torch.allclose(itself.features, rows.features, rtol=1e-4, atol=1e-5) and not rows.values


def test_real_against_real_are_other_images_of_the_same_styles(measurer):
    cell = Cell("seen", "softedge", "real")
    rows, case_set = measurer(Job(cell)), measurer.plan.case_set
    fresh = torch.cat([case_set.library.batch(case.style, [case.fresh]) for case in case_set.cases(cell)])
    expected = embed_images(measurer.judges.kid_features, (fresh * 255).round().to(torch.uint8))
    assert torch.allclose(rows.features[0], expected, rtol=1e-4, atol=1e-5)
    assert set(rows.values) == {"style_accuracy"}


def test_drawings_are_held_to_their_query_and_not_to_the_truths_pixels(measurer):
    drawings = measurer.plan.case_set.control(Cell("seen", "sketch", "copy_query"))
    values = measured_as(measurer, "sketch", to_pixels(drawings)).values
    assert "mse" not in values and values["edge_f1"].min() == 1
