"""Edges and their F1 against what is counted by hand."""

import pytest
import torch

from context_diffusion.evaluation.edges import edge_f1, edges


def square(color=(0.8, 0.2, 0.1), size=40, inset=10, background=1.0):
    """One flat square in the middle of a plain background, (1, 3, size, size)."""
    image = torch.full((1, 3, size, size), background)
    image[0, :, inset:-inset, inset:-inset] = torch.tensor(color).view(3, 1, 1)
    return image


def test_edges_lie_on_the_border_of_a_square():
    found = edges(square())[0]
    rows, columns = found.nonzero(as_tuple=True)
    assert len(rows) >= 60
    distance = torch.minimum((rows - 9.5).abs().minimum((rows - 29.5).abs()), (columns - 9.5).abs())
    distance = distance.minimum((columns - 29.5).abs())
    assert distance.max() <= 1.5


def test_edge_f1_counts_by_hand():
    wanted = torch.zeros(1, 20, 20, dtype=torch.bool)
    wanted[0, 5] = True  # 20 pixels
    one_off, two_off = wanted.roll(1, 1), wanted.roll(2, 1)
    assert edge_f1(wanted, wanted).item() == 1
    assert edge_f1(one_off, wanted).item() == 1
    assert edge_f1(two_off, wanted).item() == 0
    assert edge_f1(two_off, wanted, tolerance=2).item() == 1
    more = wanted.clone()
    more[0, 15, :10] = True  # 10 pixels that nobody wanted: precision 20/30, recall 1
    assert edge_f1(more, wanted).item() == pytest.approx(2 * (2 / 3) / (2 / 3 + 1))
    assert edge_f1(wanted, more).item() == pytest.approx(2 * (2 / 3) / (2 / 3 + 1))
    nothing = torch.zeros_like(wanted)
    assert edge_f1(nothing, nothing).item() == 1
    assert edge_f1(nothing, wanted).item() == 0
