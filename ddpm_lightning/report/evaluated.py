"""Read what `evaluate.py` wrote into the run folders, grouped by protocol, with a setting's seeds as repeats."""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from ddpm_lightning.report.comparison import Mean
from ddpm_lightning.report.ranking import DATA, Metric, Ranking
from ddpm_lightning.report.reading import Run, Setting, part
from ddpm_lightning.report.tables import as_text
from ddpm_lightning.runs.names import named, weights_in_words

__all__ = ["Evaluated", "evaluations"]

_BYTES = 2**20  # of a file at most
_FILES = 200  # per run at most

# A run's own part of its protocol; the rest must be shared by evaluations that are compared.
_OWN = (
    *("checkpoint", "weights_fingerprint", "data_seed", "steps", "network_evaluations_per_image"),
    *("reference_fingerprint", "features_fingerprint", "condition"),
)
# What a description says in its own words, and what it leaves out.
_SAID = ("sampler", "num_samples", "weights", "reference", "reference_images", "features", "preprocessing")
_DEFAULTS: Mapping[str, Any] = {"guidance_scale": 1, "seeds": [0]}
_METRICS = {  # by key of evaluation.json: the name, and whether lower is better
    "fid": ("FID", True),
    "kid": ("KID", True),
    "inception_score": ("Inception Score", False),
    "precision": ("precision", False),
    "recall": ("recall", False),
    "bits_per_dim_total": ("bits/dim", True),
}
Found = Mapping[Path, Mapping[str, Any]]  # the content of evaluation.json by run folder


class Evaluated(NamedTuple):
    """The evaluations under one protocol."""

    protocol: str  # in words, as marked text
    rankings: Sequence[Ranking]  # by each metric
    held_out: str  # the FID of held-out images in the samples' place, in a sentence; empty if unknown

    @property
    def verdicts(self) -> list[str]:
        """Those by FID and bits/dim; the tables have all metrics."""
        return [ranking.verdict for ranking in self.rankings if ranking.metric.name in ("FID", "bits/dim")]


def evaluations(settings: Sequence[Setting]) -> list[Evaluated]:
    """The evaluations of the settings' finished runs, one group per protocol, those of most runs first."""
    groups: dict[str, dict[Path, Mapping[str, Any]]] = {}
    for run in (run for setting in settings for run in setting.finished):
        for summary in _read(run.folder):
            key = json.dumps({k: v for k, v in summary["protocol"].items() if k not in _OWN}, sort_keys=True)
            groups.setdefault(key, {})[run.folder] = summary
    made = [_evaluated(settings, found) for found in sorted(groups.values(), key=len, reverse=True)]
    return [one for one in made if one.rankings]


def _evaluated(settings: Sequence[Setting], found: Found) -> Evaluated:
    protocols = [summary["protocol"] for summary in found.values()]
    networks = {str(protocol.get("features_fingerprint")) for protocol in protocols}
    differ = ("features_fingerprint",) if len(networks) > 1 else ()
    rankings = []
    for key, (name, lower) in _METRICS.items():
        bits = key.startswith("bits")
        metric = Metric(name, lambda s, key=key: _mean(s, found, key), DATA, lower, () if bits else differ)  # type: ignore[misc]
        if (ranking := Ranking(metric, settings)).ranked:
            rankings.append(ranking)
    return Evaluated(_description(protocols[0]), rankings, _held_out(found))


def _held_out(found: Found) -> str:
    rows = [part(summary, "metrics.fid_of_held_out") for summary in found.values()]
    known = [row["value"] for row in rows if isinstance(row, dict) and isinstance(row.get("value"), int | float)]
    whose = {str(row.get("of")) for row in rows if isinstance(row, dict)}
    if not known or len(whose) > 1:
        return ""
    return f"{whose.pop()} have FID {sum(known) / len(known):.4g}; FID is higher with fewer images."


def _mean(setting: Setting, found: Found, key: str) -> Mean | None:
    def value_of(run: Run) -> Any:
        return part(found.get(run.folder), f"metrics.{key}.value")

    return setting.mean_of(value_of)


def _read(folder: Path) -> list[dict[str, Any]]:
    """The evaluations in a run folder, oldest first; what cannot be read is left out."""
    paths = [path for path in (folder / "evaluations").glob("*/evaluation_*.json") if path.is_file()]
    read = []
    for path in sorted(paths, key=lambda path: (path.stat().st_mtime, path))[-_FILES:]:
        with suppress(OSError, ValueError, RecursionError):
            if path.stat().st_size <= _BYTES:
                found = json.loads(path.read_text(encoding="utf-8"))
                if isinstance(part(found, "protocol"), dict) and isinstance(part(found, "metrics"), dict):
                    read.append(found)
    return read


def _description(protocol: Mapping[str, Any]) -> str:
    """A protocol in words, as marked text."""
    sampler = protocol.get("sampler")
    node = sampler if isinstance(sampler, Mapping) else {}
    steps = node.get("num_steps")
    parts = [
        f"`{named('sampler', node)}` in {'all' if steps is None else steps} steps",
        f"{as_text(protocol.get('num_samples'))} samples",
        weights_in_words(str(protocol.get("weights"))),
        f"{as_text(protocol.get('reference_images'))} {protocol.get('reference')} images as reference",
        f"features: {protocol.get('features')}",
    ]
    rest = {key: value for key, value in protocol.items() if key not in (*_OWN, *_SAID) and value != _DEFAULTS.get(key)}
    parts += [f"{key.replace('_', ' ')} {value}" for key, value in rest.items()]
    return ", ".join(" ".join(text.split())[:200] for text in parts)
