"""The losses of fifty steps are those that were stored, in float64, in which machines agree."""

import json
import sys

import pytest

from tests.helpers.configs import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import curves


@pytest.mark.parametrize("name", curves.names())
def test_a_curve_is_the_one_that_was_stored(name):
    stored = json.loads(curves.GOLDEN.read_text())[name]
    assert len(stored) == curves.STEPS
    assert curves.difference(curves.curve(name), stored) < 1e-6
