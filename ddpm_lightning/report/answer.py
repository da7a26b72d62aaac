"""Which setting is best by a metric and by how much, in a sentence that claims no more than the spread allows."""

from collections.abc import Sequence
from typing import Any

from ddpm_lightning.report.comparison import Distance
from ddpm_lightning.report.reading import Setting, part

__all__ = ["METRICS", "answer", "comparable", "incomparable", "measured", "ranking"]

METRICS = ("val/bits_per_dim", "val/fid", "val/kid", "val/loss")  # less is better in all of them

_NAMED = 2  # so many others stand in the sentence by name

# What settings must share so that the numbers mean the same.
_DATA = ("data.dataset", "data.channels", "data.image_size", "data.val_fraction")
_FEATURES = (*_DATA, "features", "callbacks.generation_metrics.num_samples")
_SHARED = {
    "val/bits_per_dim": _DATA,
    "val/fid": _FEATURES,
    "val/kid": _FEATURES,
    # The mean over t weighs levels of noise as the schedule spaces them.
    "val/loss": (*_DATA, "loss", "prediction", "learned_variance", "schedule"),
}


def measured(settings: Sequence[Setting]) -> list[str]:
    """The metrics that a finished run has."""
    return [metric for metric in METRICS if any(setting.mean("best", metric) for setting in settings)]


def comparable(settings: Sequence[Setting]) -> dict[str, list[Setting]]:
    """The ranking by each of the measured metrics that compares."""
    return {metric: ranking(metric, settings) for metric in measured(settings) if not incomparable(metric, settings)}


def ranking(metric: str, settings: Sequence[Setting]) -> list[Setting]:
    """The settings of which a run has finished with the metric, the best first."""
    means = [(mean.mean, i) for i, setting in enumerate(settings) if (mean := setting.mean("best", metric))]
    return [settings[i] for _, i in sorted(means)]


def incomparable(metric: str, settings: Sequence[Setting]) -> list[str]:
    """The keys that must be shared for the metric to be compared, and are not."""
    configs = [setting.runs[0].config for setting in settings]
    return [key for key in _SHARED[metric] if any(_meaning(c, key) != _meaning(configs[0], key) for c in configs)]


def answer(metric: str, settings: Sequence[Setting]) -> str | None:
    """The sentence, None where no run has the metric."""
    ranked = ranking(metric, settings)
    if not ranked:
        return None
    if differ := incomparable(metric, settings):
        return f"`{metric}` cannot be compared: the settings differ in {' and '.join(f'`{key}`' for key in differ)}."
    means = [mean for setting in ranked if (mean := setting.mean("best", metric))]
    best, head = means[0], f"`{metric}`: **`{ranked[0].name}`**"
    value = f"{best} over {best.n} seeds" if best.n > 1 else f"{best} (one seed)"
    if len(ranked) == 1:
        return f"`{metric}`: {value}" + (
            "." if len(settings) == 1 else f" with `{ranked[0].name}`, which alone has it."
        )
    distances = [Distance.between(best, mean) for mean in means[1:]]
    others = [f"{_below(d)} `{setting.name}`{_judged(d)}" for setting, d in zip(ranked[1:], distances, strict=True)]
    if len(others) > _NAMED:
        rest = distances[_NAMED:]
        others[_NAMED:] = [f"clear of {sum(bool(d.clear) for d in rest)} of the {len(rest)} others"]
    beaten = [distance.clear for distance in distances]
    end = "" if all(beaten) else " Seeds are missing to judge by." if None in beaten else " There is no clear winner."
    return f"{head} is {'best' if all(beaten) else 'lowest'}, {value}: {'; '.join(others)}.{end}"


def _below(distance: Distance) -> str:
    return f"{abs(distance.delta):.2g} {'below' if distance.delta >= 0 else 'above'}"


def _judged(distance: Distance) -> str:
    if distance.clear is None:
        return ""
    return f", {'more than' if distance.clear else 'within'} the spread (p = {max(distance.p, 1e-4):.2g})"


def _meaning(config: Any, key: str) -> Any:
    found = part(config, key)
    return {k: v for k, v in found.items() if k != "times"} if key == "loss" and isinstance(found, dict) else found
