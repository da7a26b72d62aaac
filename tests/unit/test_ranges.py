"""The one gate for values: what passes, and the sentence for what does not."""

import math
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest

from ddpm_lightning.errors import UserError, below
from ddpm_lightning.ranges import require, require_one_of


@pytest.mark.parametrize(
    ("value", "interval"),
    [
        (1, "1.."),
        (10**30, "1.."),
        (np.int64(3), "1..3"),
        (0, "0.."),
        (-1, "-1..8"),
        (0.5, "(0, 1]"),
        (1, "(0, 1]"),
        (Fraction(1, 2), "[0, 1)"),
        (0, "[0, inf)"),
        (np.float32(2), "[0, 2]"),
    ],
)
def test_what_passes(value, interval):
    require("x", value, interval)


@pytest.mark.parametrize(
    ("value", "interval", "sentence"),
    [
        (2.5, "1..", "x must be a positive integer, got 2.5"),
        (2.0, "1..", "x must be a positive integer, got 2.0: write 2"),
        ("abc", "0..", "x must be a non-negative integer, got 'abc'"),
        (True, "0..", "x must be a non-negative integer, got true"),
        (None, "1..", "x must be a positive integer, got null"),
        (0, "1..1000", "x must be an integer from 1 to 1000, got 0"),
        (1001, "1..1000", "x must be an integer from 1 to 1000, got 1001"),
        (1, "2..", "x must be an integer of at least 2, got 1"),
        (0, "(0, inf)", "x must be a positive number, got 0"),
        (-0.5, "[0, inf)", "x must be a non-negative number, got -0.5"),
        (math.inf, "[0, inf)", "x must be a non-negative number, got inf"),
        (math.nan, "(0, 1]", "x must be a number in (0, 1], got nan"),
        (0, "(0, 1]", "x must be a number in (0, 1], got 0"),
        (1, "[0, 1)", "x must be a number in [0, 1), got 1"),
        (1j, "[0, 1]", "x must be a number in [0, 1], got 1j"),
        (Decimal(1), "[0, 1]", "x must be a number in [0, 1], got 1"),
        ([1], "1..", "x must be a positive integer, got [1]"),
    ],
)
def test_what_does_not_pass_and_its_sentence(value, interval, sentence):
    with pytest.raises(UserError) as refused:
        require("x", value, interval)
    assert str(refused.value) == sentence


def test_null_where_it_is_a_value():
    require("x", None, "1..", optional=True)
    with pytest.raises(UserError, match=r"^x must be a positive integer or null, got 0: because$"):
        require("x", 0, "1..", optional=True, hint="because")


def test_choices():
    require_one_of("x", "a", ("a", "b"))
    require_one_of("x", False, (True, False))
    for value, choices, sentence in (
        ("c", ("a", "b"), "x must be a or b, got 'c'"),
        (1, (True, False), "x must be true or false, got 1"),
        (None, ("a", "b", "c"), "x must be a, b or c, got null"),
        ("", ("a",), "x must be a, got ''"),
    ):
        with pytest.raises(UserError) as refused:
            require_one_of("x", value, choices)
        assert str(refused.value) == sentence


def test_below_a_key():
    for text, whole in (
        ("num_steps must be 1", "sampler.num_steps must be 1"),
        ("a.b=3 is too large", "sampler.a.b=3 is too large"),
        ("the sampler\nis bad", "sampler: the sampler is bad"),
    ):
        with pytest.raises(UserError) as refused, below("sampler"):
            raise ValueError(text)
        assert str(refused.value) == whole
