"""Rank settings by a metric, with a verdict that accounts for the spread."""

from collections.abc import Sequence
from typing import Any

from ddpm_lightning.report.comparison import Distance, Mean
from ddpm_lightning.report.reading import Setting, part

__all__ = ["METRICS", "incomparable", "measured", "rankings", "verdict", "winner"]

METRICS = ("val/bits_per_dim", "val/fid", "val/kid", "val/loss")  # lower is better

_NAMED = 2  # number of other settings named in the verdict

# Config keys that settings must share for the metric to be comparable.
_DATA = ("data.dataset", "data.channels", "data.image_size", "data.val_fraction")
_FEATURES = (*_DATA, "features", "callbacks.generation_metrics.num_samples")
_SHARED = {
    "val/bits_per_dim": _DATA,
    "val/fid": _FEATURES,
    "val/kid": _FEATURES,
    # The mean over t weights noise levels by the schedule's spacing.
    "val/loss": (*_DATA, "loss", "prediction", "learned_variance", "schedule"),
}


def measured(settings: Sequence[Setting]) -> list[str]:
    """The metrics of the finished runs."""
    return [metric for metric in METRICS if any(setting.best(metric) for setting in settings)]


def rankings(settings: Sequence[Setting]) -> dict[str, list[tuple[Setting, Mean]]]:
    """The rankings by each comparable metric."""
    return {metric: ranking(metric, settings) for metric in measured(settings) if not incomparable(metric, settings)}


def winner(metric: str | None, settings: Sequence[Setting]) -> str:
    """The best setting by a metric, or by the first that can be compared, in a line; empty where nothing can."""
    ranked = rankings(settings)
    metric = metric if metric in ranked else next(iter(ranked), None)
    if metric is None:
        return ""
    setting, mean = ranked[metric][0]
    seeds = f" over {mean.n} seeds" if mean.n > 1 else ""
    if len(settings) == 1:
        return f"{metric}: {mean}{seeds}"
    return f"Best {metric} (lower is better): {mean}{seeds} with {setting.name}"


def ranking(metric: str, settings: Sequence[Setting]) -> list[tuple[Setting, Mean]]:
    """The settings with a finished run and the metric, with the metric's mean, best first."""
    means = [(setting, mean) for setting in settings if (mean := setting.best(metric))]
    return sorted(means, key=lambda ranked: ranked[1].mean)


def incomparable(metric: str, settings: Sequence[Setting]) -> list[str]:
    """The differing config keys that make the metric incomparable."""
    configs = [setting.config for setting in settings]
    return [key for key in _SHARED[metric] if any(_meaning(c, key) != _meaning(configs[0], key) for c in configs)]


def verdict(metric: str, settings: Sequence[Setting]) -> str | None:
    """The verdict on a metric, None if no run has it."""
    ranked = ranking(metric, settings)
    if not ranked:
        return None
    if differ := incomparable(metric, settings):
        return f"`{metric}` cannot be compared: the settings differ in {' and '.join(f'`{key}`' for key in differ)}."
    (first, best), *others = ranked
    value = f"{best} over {best.n} seeds" if best.n > 1 else f"{best} (one seed)"
    if not others:
        alone = "" if len(settings) == 1 else f" with `{first.name}`, the only setting with this metric"
        return f"`{metric}`: {value}{alone}."
    distances = [Distance.between(best, mean) for _, mean in others]
    beside = [_beside(setting, distance) for (setting, _), distance in zip(others, distances, strict=True)]
    if rest := distances[_NAMED:]:
        beside[_NAMED:] = [f"clear of {sum(bool(d.clear) for d in rest)} of the {len(rest)} others"]
    clear = [distance.clear for distance in distances]
    end = "" if all(clear) else " More seeds are needed to tell." if None in clear else " There is no clear winner."
    place = "best" if all(clear) else "lowest"
    return f"`{metric}`: **`{first.name}`** is {place}, {value}: {'; '.join(beside)}.{end}"


def _beside(other: Setting, distance: Distance) -> str:
    """Compare the best setting with another one."""
    where = f"{abs(distance.delta):.2g} {'below' if distance.delta >= 0 else 'above'} `{other.name}`"
    if distance.clear is None:
        return where
    return f"{where}, {'more than' if distance.clear else 'within'} the spread (p = {max(distance.p, 1e-4):.2g})"


def _meaning(config: Any, key: str) -> Any:
    found = part(config, key)
    return {k: v for k, v in found.items() if k != "times"} if key == "loss" and isinstance(found, dict) else found
