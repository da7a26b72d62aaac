"""Means over seeds and significance tests."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtr

__all__ = ["LEVEL", "Distance", "Mean"]

LEVEL = 0.05  # significance level of the t-tests


@dataclass(frozen=True)
class Mean:
    """Mean and standard deviation (with n − 1) of finite values; the deviation of a single value is nan.

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
        return float(np.std([*self.by_seed.values()], ddof=1)) if self.n > 1 else math.nan

    def __str__(self) -> str:
        """Format with two significant digits of the deviation."""
        if not self.deviation > 0:
            return f"{self.mean:.4g}" + (" ± 0" if self.deviation == 0 else "")
        decimals = max(0, 1 - math.floor(math.log10(self.deviation)))
        return f"{self.mean:,.{decimals}f} ± {self.deviation:,.{decimals}f}"


@dataclass(frozen=True)
class Distance:
    """The difference of two means and the p-value of Student's t-test, nan if unknown.

    A seed fixes a run's data split, initial weights and noise, whose effects cancel when two settings are compared seed by
    seed. So the test is paired over the common seeds if there are at least two, and otherwise Welch's (Welch 1947).
    """

    delta: float
    p: float

    @classmethod
    def between(cls, low: Mean, high: Mean) -> "Distance":
        """`high` minus `low`."""
        if len(shared := sorted({*low.by_seed} & {*high.by_seed})) > 1:
            pairs = Mean({seed: high.by_seed[seed] - low.by_seed[seed] for seed in shared})
            return cls(pairs.mean, _p_value(pairs.mean, pairs.deviation**2 / pairs.n, pairs.n - 1))
        delta, a, b = high.mean - low.mean, low.deviation**2 / low.n, high.deviation**2 / high.n
        freedom = (a + b) ** 2 / (a**2 / (low.n - 1) + b**2 / (high.n - 1)) if a + b > 0 else math.nan
        return cls(delta, _p_value(delta, a + b, freedom))

    @property
    def clear(self) -> bool | None:
        """Whether the difference is significant; None if unknown."""
        return None if math.isnan(self.p) else self.p < LEVEL

    def __str__(self) -> str:
        return f"{self.delta:+.2g}" + {None: "", True: " clear", False: " within"}[self.clear]


def _p_value(delta: float, variance: float, freedom: float) -> float:
    """The two-sided p-value."""
    if not variance > 0:
        return math.nan if math.isnan(variance) else float(delta == 0)
    return float(2 * stdtr(freedom, -abs(delta) / math.sqrt(variance)))
