"""The first of the random arguments; `random_arguments` says how to run more."""

from collections import Counter

from ..tiny_pipeline import make_pipe
from .random_arguments import draw, outcome


def test_a_finite_image_or_one_clear_line():
    pipe = make_pipe(prediction_type="flow")
    outcomes = {number: outcome(pipe, draw(number)) for number in range(60)}
    faults = {number: result for number, result in outcomes.items() if result not in ("image", "refused")}
    assert not faults
    assert min(Counter(outcomes.values()).values()) > 10  # both are seen
