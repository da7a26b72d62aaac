"""Means over seeds with confidence intervals, t-tests of their differences, and Holm's correction."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.special import stdtr, stdtrit

__all__ = ["CONFIDENCE", "FEWEST", "LEVEL", "Difference", "Estimate", "Mean", "holm"]

LEVEL = 0.05  # significance level of the t-tests
CONFIDENCE = 1 - LEVEL  # of the intervals
FEWEST = 3  # seeds for an interval or a test


class Estimate(NamedTuple):
    """A value and the ends of its confidence interval, nan if unknown."""

    value: float
    low: float = math.nan
    high: float = math.nan

    @property
    def texts(self) -> tuple[str, str]:
        """The value and the interval with two significant digits of its half-width; an unknown interval is ""."""
        half = (self.high - self.low) / 2
        if math.isnan(half):
            return _minus(f"{self.value:.4g}"), ""
        form = f",.{max(0, 1 - math.floor(math.log10(half)))}f" if half > 0 else ".4g"
        return _minus(f"{self.value:{form}}"), _minus(f"[{self.low:{form}}, {self.high:{form}}]")

    def __str__(self) -> str:
        return " ".join(filter(None, self.texts))


@dataclass(frozen=True)
class Mean:
    """Mean, standard deviation (with n − 1) and confidence interval of finite values.

    Args:
        by_seed: a run's value by its seed.
    """

    by_seed: Mapping[int, float]

    @property
    def n(self) -> int:
        return len(self.by_seed)

    @property
    def mean(self) -> float:
        return float(np.mean([*self.by_seed.values()]))

    @property
    def deviation(self) -> float:
        """The standard deviation; nan for a single value."""
        return float(np.std([*self.by_seed.values()], ddof=1)) if self.n > 1 else math.nan

    @property
    def estimate(self) -> Estimate:
        """The mean with Student's interval, from FEWEST seeds on."""
        return _estimate(self.mean, self.deviation**2 / self.n, self.n - 1) if self.n >= FEWEST else Estimate(self.mean)

    def __str__(self) -> str:
        return f"{self.estimate} over {self.n} seeds" if self.n > 1 else f"{self.estimate} (one seed)"


class Difference(NamedTuple):
    """The difference of two means, and the p-value of the t-test, nan if there are too few seeds.

    A seed fixes a run's data split, initial weights and noise, whose effects cancel when two settings are compared seed by
    seed. So the test is paired where at least FEWEST seeds are shared, and otherwise Welch's (Welch 1947).
    """

    estimate: Estimate
    p: float = math.nan
    paired: bool = False

    @classmethod
    def between(cls, one: Mean, other: Mean) -> "Difference":
        """`other` minus `one`."""
        if len(shared := sorted({*one.by_seed} & {*other.by_seed})) >= FEWEST:
            pairs = Mean({seed: other.by_seed[seed] - one.by_seed[seed] for seed in shared})
            return cls(pairs.estimate, _p_value(pairs.mean, pairs.deviation**2 / pairs.n, pairs.n - 1), paired=True)
        delta = other.mean - one.mean
        if min(one.n, other.n) < FEWEST:
            return cls(Estimate(delta))
        a, b = one.deviation**2 / one.n, other.deviation**2 / other.n
        freedom = (a + b) ** 2 / (a**2 / (one.n - 1) + b**2 / (other.n - 1)) if a + b > 0 else math.inf
        return cls(_estimate(delta, a + b, freedom), _p_value(delta, a + b, freedom))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for the number of tests (Holm 1979); nan, which is no test, stays nan."""
    known = sorted((p, i) for i, p in enumerate(p_values) if not math.isnan(p))
    corrected, largest = [math.nan] * len(p_values), 0.0
    for rank, (p, i) in enumerate(known):
        largest = max(largest, min(1.0, (len(known) - rank) * p))
        corrected[i] = largest
    return corrected


def _estimate(value: float, variance: float, freedom: float) -> Estimate:
    reach = float(stdtrit(freedom, (1 + CONFIDENCE) / 2)) * math.sqrt(variance) if variance > 0 else 0.0
    return Estimate(value, value - reach, value + reach)


def _p_value(delta: float, variance: float, freedom: float) -> float:
    """The two-sided p-value."""
    return float(2 * stdtr(freedom, -abs(delta) / math.sqrt(variance))) if variance > 0 else float(delta == 0)


def _minus(text: str) -> str:
    return text.replace("-", "−")
