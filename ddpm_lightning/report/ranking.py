"""Rank settings by a metric, test their differences, and give a verdict that claims no more than the tests."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import Any, NamedTuple

from ddpm_lightning.report.comparison import FEWEST, LEVEL, Difference, Mean, holm
from ddpm_lightning.report.reading import Setting, part

__all__ = ["DATA", "Metric", "Pair", "Ranking", "listed", "validations", "winner"]

_NAMED = 2  # number of other settings named in the verdict

# Config keys that settings must share for the metric to be comparable.
DATA = ("data.dataset", "data.channels", "data.image_size", "data.val_fraction")
_FEATURES = (*DATA, "features", "callbacks.generation_metrics.num_samples")
_VALIDATIONS = {
    "val/bits_per_dim": DATA,
    "val/fid": _FEATURES,
    "val/kid": _FEATURES,
    # The mean over t weights noise levels by the schedule's spacing.
    "val/loss": (*DATA, "loss", "prediction", "learned_variance", "schedule"),
}


class Metric(NamedTuple):
    """A metric of runs.

    Args:
        name: its name, plain; one with a slash is a column of metrics.csv.
        mean: its mean of a setting.
        shared: the config keys in which settings must agree.
        lower: whether lower is better.
        differ: what else makes it incomparable.
    """

    name: str
    mean: Callable[[Setting], Mean | None]
    shared: Sequence[str] = DATA
    lower: bool = True
    differ: Sequence[str] = ()

    @property
    def text(self) -> str:
        """The name as marked text."""
        return f"`{self.name}`" if self.name.startswith("val/") else self.name

    @property
    def better(self) -> str:
        """Which way is better, in words."""
        return "lower is better" if self.lower else "higher is better"


class Pair(NamedTuple):
    """Two settings by their place in a ranking, the difference of the second from the first, and its corrected p-value."""

    first: int
    second: int
    difference: Difference
    p: float


@dataclass(frozen=True)
class Ranking:
    """The settings with a finished run and the metric."""

    metric: Metric
    settings: Sequence[Setting]

    @cached_property
    def ranked(self) -> list[tuple[Setting, Mean]]:
        """The settings with the metric's mean, best first; in their own order if they cannot be compared."""
        if self.incomparable:
            return self._means
        return sorted(self._means, key=lambda ranked: ranked[1].mean if self.metric.lower else -ranked[1].mean)

    @cached_property
    def _means(self) -> list[tuple[Setting, Mean]]:
        return [(setting, mean) for setting in self.settings if (mean := self.metric.mean(setting))]

    @cached_property
    def incomparable(self) -> list[str]:
        """The differing config keys that make the metric incomparable."""
        configs = [setting.config for setting, _ in self._means]
        keys = (k for k in self.metric.shared if any(_meaning(c, k) != _meaning(configs[0], k) for c in configs))
        return [*keys, *self.metric.differ]

    @cached_property
    def pairs(self) -> list[Pair]:
        """All pairs of settings, with p-values corrected over them; none if they cannot be compared."""
        places = [] if self.incomparable else [*combinations(range(len(self.ranked)), 2)]
        differences = [Difference.between(self.ranked[i][1], self.ranked[j][1]) for i, j in places]
        corrected = holm([difference.p for difference in differences])
        return [Pair(i, j, d, p) for (i, j), d, p in zip(places, differences, corrected, strict=True)]

    @property
    def tested(self) -> int:
        """The number of tests that the p-values are corrected for."""
        return sum(not math.isnan(pair.p) for pair in self.pairs)

    @property
    def verdict(self) -> str:
        """One sentence; empty if no setting has the metric."""
        name = self.metric.text
        if not self.ranked:
            return ""
        if self.incomparable:
            return f"{name} cannot be compared: the settings differ in {listed([f'`{key}`' for key in self.incomparable])}."
        (first, best), *others = self.ranked
        if not others:
            alone = "" if len(self.settings) == 1 else f" with `{first.name}`, the only setting with this metric"
            return f"{name}: {best}{alone}."
        against = self.pairs[: len(others)]  # the pairs with the best
        place = "lowest" if self.metric.lower else "highest"
        if all(math.isnan(pair.p) for pair in against):
            return (
                f"**No verdict** on {name}, since a test requires at least {FEWEST} seeds per setting: "
                f"`{first.name}` is {place} with {best}."
            )
        if all(pair.p < LEVEL for pair in against):
            margin = f", significantly {'lower' if self.metric.lower else 'higher'} than {self._named(against)}"
            return f"**`{first.name}`** is best by {name}: {best}{margin}."
        return f"**No clear winner** by {name}: `{first.name}` is {place}, {best}, but {self._doubts(against)}."

    def _doubts(self, against: Sequence[Pair]) -> str:
        """Why the first setting is not clearly the best, and what it is clearly better than."""
        unclear = [pair for pair in against if pair.p >= LEVEL]
        parts = [f"its lead over {self._named(unclear)} may be chance"] if unclear else []
        if untested := [pair for pair in against if math.isnan(pair.p)]:
            parts.append(f"{self._named(untested)} {'has' if len(untested) == 1 else 'have'} too few seeds for a test")
        if clear := [pair for pair in against if pair.p < LEVEL]:
            parts.append(f"it is significantly {'lower' if self.metric.lower else 'higher'} than {self._named(clear)}")
        return "; ".join(parts)

    def _named(self, pairs: Sequence[Pair]) -> str:
        """The second settings of some pairs with their p-values, or their number."""
        if len(pairs) > _NAMED:
            p_values = [pair.p for pair in pairs if not math.isnan(pair.p)]
            bound = min if p_values and p_values[0] >= LEVEL else max
            told = f" (all {_p_text(bound(p_values), '≥' if bound is min else '≤')})" if p_values else ""
            return f"{len(pairs)} other settings{told}"
        texts = [(self.ranked[pair.second][0].name, pair.p) for pair in pairs]
        return " and ".join(f"`{name}`" + ("" if math.isnan(p) else f" ({_p_text(p)})") for name, p in texts)


def validations(settings: Sequence[Setting]) -> list[Ranking]:
    """The rankings by the best validation of each metric that finished runs have."""
    metrics = (Metric(name, _best_of(name), shared) for name, shared in _VALIDATIONS.items())
    return [ranking for metric in metrics if (ranking := Ranking(metric, settings)).ranked]


def winner(metric: str | None, settings: Sequence[Setting]) -> str:
    """The verdict by a metric, or by the first that can be compared, as marked text; empty where nothing can."""
    rankings = {ranking.metric.name: ranking for ranking in validations(settings) if not ranking.incomparable}
    found = rankings.get(metric or "") or next(iter(rankings.values()), None)
    return "" if found is None else found.verdict


def listed(words: Sequence[str]) -> str:
    """Words as in a sentence: `a, b and c`."""
    return " and ".join([*filter(None, [", ".join(words[:-1])]), *words[-1:]])


def _p_text(p: float, relation: str = "=") -> str:
    """A p-value with two significant digits."""
    return "p < 0.0001" if p < 1e-4 else f"p {relation} {p:.2g}"


def _best_of(name: str) -> Callable[[Setting], Mean | None]:
    return lambda setting: setting.mean(f"best.{name}")


def _meaning(config: Any, key: str) -> Any:
    found = part(config, key)
    return {k: v for k, v in found.items() if k != "times"} if key == "loss" and isinstance(found, dict) else found
