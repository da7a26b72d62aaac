"""Intervals, t-tests and Holm's correction against published examples, scipy and the definition."""

import math
from itertools import combinations

import numpy as np
import pytest
from scipy import stats

from ddpm_lightning.report.comparison import Difference, Estimate, Mean, holm

# Student's sleep data (1908): hours of extra sleep of ten patients under two drugs; R's documentation of t.test gives
# t = -4.0621, df = 9, p = 0.002833 and [-2.4598858, -0.7001142] paired, and
# t = -1.8608, df = 17.776, p = 0.07939 and [-3.3654832, 0.2054832] as two samples
ONE = (0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0)
TWO = (1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4)


def mean_of(values, first=0):
    return Mean({first + i: float(value) for i, value in enumerate(values)})


def test_students_sleep_data():
    paired = Difference.between(mean_of(TWO), mean_of(ONE))
    assert paired.paired
    assert paired.p == pytest.approx(0.002833, abs=5e-7)
    np.testing.assert_allclose(paired.estimate, (-1.58, -2.4598858, -0.7001142), rtol=1e-7)
    apart = Difference.between(mean_of(TWO, first=100), mean_of(ONE))
    assert not apart.paired
    assert apart.p == pytest.approx(0.07939, abs=5e-6)
    np.testing.assert_allclose(apart.estimate, (-1.58, -3.3654832, 0.2054832), rtol=1e-6)


@pytest.mark.parametrize("shift", [0.01, 0.3, 2.0])
@pytest.mark.parametrize("n", [3, 4, 7])
def test_tests_and_intervals_are_scipys(n, shift):
    draw = np.random.default_rng(n)
    a, b = draw.normal(size=n), draw.normal(shift, 0.5, size=n)
    paired, other = Difference.between(mean_of(a), mean_of(b)), stats.ttest_rel(b, a)
    assert paired.p == pytest.approx(other.pvalue, rel=1e-6)
    np.testing.assert_allclose(paired.estimate, (np.mean(b - a), *other.confidence_interval(0.95)), rtol=1e-6)
    apart, other = (
        Difference.between(mean_of(a), mean_of([*b, 0.7], first=100)),
        stats.ttest_ind([*b, 0.7], a, equal_var=False),
    )
    assert apart.p == pytest.approx(other.pvalue, rel=1e-6)
    np.testing.assert_allclose(apart.estimate[1:], other.confidence_interval(0.95), rtol=1e-6)
    interval = stats.t.interval(0.95, n - 1, loc=np.mean(a), scale=stats.sem(a))
    np.testing.assert_allclose(mean_of(a).estimate, (np.mean(a), *interval), rtol=1e-6)
    assert mean_of(a).deviation == pytest.approx(np.std(a, ddof=1), rel=1e-12)


def test_fewer_than_three_seeds_have_neither_interval_nor_test():
    assert math.isnan(mean_of([1.0, 2.0]).estimate.low)
    for low, high in [((1.0, 2.0), (3.0, 4.0)), ((1.0, 2.0), (1.0, 2.0, 3.0)), ((1.0,), (2.0,))]:
        difference = Difference.between(mean_of(low), mean_of(high))
        assert difference.estimate.value == pytest.approx(np.mean(high) - np.mean(low))
        assert math.isnan(difference.p)
        assert math.isnan(difference.estimate.low)


def test_seeds_without_spread():
    same, more = mean_of([2.0] * 3), mean_of([2.5] * 3)
    assert Difference.between(same, same).p == 1
    assert Difference.between(same, more) == (Estimate(0.5, 0.5, 0.5), 0.0, True)
    assert Difference.between(same, mean_of([2.5] * 3, first=9)) == (Estimate(0.5, 0.5, 0.5), 0.0, False)


def test_holms_correction_by_a_worked_example_and_by_closed_testing():
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])  # by hand, as R's p.adjust
    draw = np.random.default_rng(0)
    for n in (1, 2, 5):
        p = draw.uniform(0, 0.3, n)
        # Holm's method is the closed test by Bonferroni: the largest corrected p of all sets of hypotheses with this one
        sets = [s for size in range(1, n + 1) for s in combinations(range(n), size)]
        closed = [max(min(1, len(s) * min(p[[*s]])) for s in sets if i in s) for i in range(n)]
        np.testing.assert_allclose(holm(p), closed)
    assert holm([math.nan, 0.02, math.nan])[1] == 0.02  # what was not tested does not count
    assert math.isnan(holm([math.nan, 0.02])[0])


@pytest.mark.parametrize(
    ("estimate", "text"),
    [
        (Estimate(2.4533, 1.934, 2.972), "2.45 [1.93, 2.97]"),
        (Estimate(1234.5, 1230.3, 1238.7), "1,234.5 [1,230.3, 1,238.7]"),
        (Estimate(-0.2, -0.512, 0.112), "−0.20 [−0.51, 0.11]"),
        (Estimate(2.0, 2.0, 2.0), "2 [2, 2]"),
        (Estimate(0.123456), "0.1235"),
        (Estimate(300.0, 100.0, 500.0), "300 [100, 500]"),
    ],
)
def test_an_estimate_has_two_digits_of_its_half_width(estimate, text):
    assert str(estimate) == text
