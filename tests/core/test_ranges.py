"""Numbers in a range: what counts as one, and how the range is said."""

import argparse
import math

import numpy as np
import pytest
import torch

from context_diffusion.errors import ContextDiffusionError
from context_diffusion.ranges import number, whole_number

WHOLE = [3, np.int64(3), np.uint8(3), np.array(3), torch.tensor(3)]
PARTS = [0.5, 1, np.float32(0.5), np.array(0.5), torch.tensor(0.5)]
NONE = ["3", b"3", True, np.bool_(True), torch.tensor(True), None, [3], np.array([3]), torch.tensor([3]), 3 + 0j]


@pytest.mark.parametrize("value", WHOLE, ids=lambda value: type(value).__name__)
def test_whole_numbers_of_every_kind(value):
    assert value in whole_number(3, 3) and value in number(3)
    assert value not in whole_number(4) and value not in whole_number(0, 2)
    assert type(whole_number(1).read(value)) is int


@pytest.mark.parametrize("value", PARTS, ids=lambda value: type(value).__name__)
def test_numbers_of_every_kind(value):
    assert value in number(0, 1) and value not in number(2) and value not in number(-1, 0.25)
    assert value in number() and (value in whole_number(0)) == (value == 1)


@pytest.mark.parametrize("value", NONE, ids=repr)
def test_what_is_no_number(value):
    assert value not in number() and value not in whole_number(0)
    with pytest.raises(ContextDiffusionError, match="^steps: got .*, expected a whole number from 0 up$"):
        whole_number(0).check(steps=value)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 10**400, np.float32("inf"), torch.tensor(math.nan)])
def test_numbers_are_finite(value):
    assert value not in number() and value not in number(0)


@pytest.mark.parametrize(
    ("numbers", "words", "option"),
    [
        (number(), "a finite number", "a finite number"),
        (number(0), "a number from 0 up", "a number, 0 or more"),
        (number(0, 0.5), "a number from 0 to 0.5", "a number in [0, 0.5]"),
        (whole_number(1), "a whole number from 1 up", "a whole number, 1 or more"),
        (whole_number(0, 2**62), f"a whole number from 0 to {2**62}", f"a whole number in [0, {2**62}]"),
    ],
)
def test_the_range_in_words(numbers, words, option):
    assert str(numbers) == words
    for text in ("many", "nan", "-1e999", ""):
        with pytest.raises(argparse.ArgumentTypeError) as caught:
            numbers(text)
        assert str(caught.value) == f"got {text!r}, expected {option}"


def test_an_option_is_read_as_its_kind():
    assert type(whole_number(1)("3")) is int and type(number(0, 1)("1")) is float
    with pytest.raises(argparse.ArgumentTypeError):
        whole_number(1)("2.5")


def test_the_wrong_one_of_several_is_named():
    assert number(0, 1).check(start=0, end=np.float64(0.5)) == [0, 0.5]
    with pytest.raises(ContextDiffusionError, match="^end is 2, expected a number from 0 to 1$"):
        number(0, 1).check(start=0, end=2)
