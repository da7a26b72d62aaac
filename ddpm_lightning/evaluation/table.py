"""Metrics with their provenance, their table, and samples beside their nearest training images."""

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from torch import Tensor, nn

from ddpm_lightning.likelihood import BitsPerDim
from ddpm_lightning.metrics import distances
from ddpm_lightning.metrics.distances import Score
from ddpm_lightning.metrics.features import logits_of
from ddpm_lightning.runs.names import named
from ddpm_lightning.sheets import Picture, beside_neighbors

__all__ = [
    "Compared",
    "aligned",
    "bits_rows",
    "fold",
    "lines_of",
    "memorization_rows",
    "model_name",
    "nearest_sheet",
    "score_rows",
]

PRECISION_IMAGES = 10_000  # per set, as in the paper
MEMORIZATION_IMAGES = 2_000  # per set: samples and held-out images
NEIGHBORS_SHOWN = 5
FEWEST = 10  # minimum number of images to compare


@dataclass(frozen=True)
class Compared:
    """Images with their features; only rank zero has features."""

    images: Tensor
    features: Tensor


def model_name(model: nn.Module) -> str:
    """The features' name in tables."""
    return str(getattr(model, "name", type(model).__name__))


_WIDTH = 80  # of a terminal
_BETTER = {  # by the start of a metric's name
    "fid_of": "",
    "kid_of": "",
    "fid": "lower is better",
    "kid": "lower is better",
    "inception_score": "higher is better",
    "precision": "higher is better",
    "recall": "higher is better",
    "closer": "best near 0.5",
    "bits_per_dim_total": "lower is better",
}
_NOTES = {
    "fid": "",
    "kid": f"{distances.KID_SUBSETS} subsets of at most {distances.KID_SUBSET_SIZE:,}",
    "inception_score": "ten parts",
    "precision": f"k = {distances.PRECISION_NEIGHBORS}, at most {PRECISION_IMAGES:,} of each",
    "recall": f"k = {distances.PRECISION_NEIGHBORS}, at most {PRECISION_IMAGES:,} of each",
}


def _scores(model: nn.Module, real: Compared, fake: Compared, *, seed: int) -> dict[str, Score]:
    """FID, KID, precision, recall, and the Inception Score if the model has logits."""
    found = {
        "fid": distances.frechet_distance(real.features, fake.features),
        "kid": distances.kernel_distance(real.features, fake.features, seed=seed),
    }
    logits = logits_of(model, fake.features)
    if logits is not None:
        found["inception_score"] = distances.inception_score(logits, seed=seed)
    count = min(len(real.features), len(fake.features), PRECISION_IMAGES)
    draw = torch.Generator().manual_seed(seed)
    chosen = [s.features[torch.randperm(len(s.features), generator=draw)[:count]] for s in (real, fake)]
    found["precision"], found["recall"] = distances.precision_recall(*chosen)
    return found


def score_rows(
    model: nn.Module, sets: Mapping[str, Compared], samples: Sequence[Compared], *, seed: int, reference: str
) -> dict[str, Any]:
    """The metrics of the samples, and FID and KID of held-out images in their place, which a perfect model would reach.

    Args:
        model: the feature extractor.
        sets: "reference", "train" and "held_out".
        samples: one set per seed.
        seed: the seed of the subsets.
        reference: the name of the reference set.
    """
    real = sets["reference"]
    what = f"{len(samples[0].features):,} samples, {len(real.features):,} {reference} images, features: {model_name(model)}"
    per_seed = [_scores(model, real, fake, seed=seed) for fake in samples]
    rows = {key: _row([each[key] for each in per_seed], what, note=_NOTES[key]) for key in per_seed[0]}
    unseen = sets["held_out"]
    if reference == "train" and len(unseen.features) >= FEWEST:
        floor = f"{len(unseen.features):,} held-out images in the samples' place"
        held = _scores(model, real, unseen, seed=seed)
        rows |= {f"{key}_of_held_out": _row([held[key]], floor, note=floor) for key in ("fid", "kid")}
    return rows


def _row(measured: list[Score], of: str, *, note: str = "") -> dict[str, Any]:
    """Mean and standard deviation over the seeds; for one seed, the deviation over subsets."""
    values = [score.value for score in measured]
    row: dict[str, Any] = {"value": mean(values), "spread": measured[0].deviation, "spread_of": "subsets"}
    if len(values) > 1:
        row |= {"spread": stdev(values), "spread_of": f"{len(values)} seeds", "values": values}
    if row["spread"] is None:
        del row["spread"], row["spread_of"]
    return {**row, "of": of, "note": note}


def memorization_rows(sets: Mapping[str, Compared], samples: Compared) -> dict[str, Any]:
    """How often a sample is closer to the training set than a held-out image, by pixels and by features."""
    train, held_out = sets["train"], sets["held_out"]
    if not len(held_out.images):
        return {}
    rows = {}
    for space in ("images", "features"):
        new, unseen = (getattr(s, space)[:MEMORIZATION_IMAGES] for s in (samples, held_out))
        nearest = [distances.nearest(x, getattr(train, space))[0][:, 0] for x in (new, unseen)]
        of = (
            f"how often a sample is closer to the {len(train.images):,} training images than a held-out image is: "
            f"0.5 for new images, 1 for copies ({len(new):,} samples, {len(unseen):,} held out)"
        )
        rows[f"closer_to_train_by_{space}"] = {"value": distances.closer_share(*nearest), "of": of}
    return rows


def nearest_sheet(train: Compared, samples: Compared, count: int) -> Picture:
    """The samples closest to the training set by pixels, each with its nearest training images."""
    images = samples.images[:MEMORIZATION_IMAGES]
    found, numbers = distances.nearest(images, train.images, count=min(NEIGHBORS_SHOWN, len(train.images)))
    closest = found[:, 0].argsort()[:count]
    return beside_neighbors(images[closest], train.images[numbers[closest]])


def bits_rows(bits: BitsPerDim, *, variance: str) -> dict[str, Any]:
    """The terms of the bound, and the total with its standard error."""
    of = f"{len(bits.total):,} held-out images, {variance} variance, one sample of x_t per t"
    rows = {}
    for term, values in bits.terms.items():
        row: dict[str, Any] = {"value": float(values.mean()), "of": of}
        if len(values) > 1:
            row |= {"spread": float(values.std() / len(values) ** 0.5), "spread_of": "images"}
        rows[f"bits_per_dim_{term}"] = row
    return rows


def lines_of(summary: Mapping[str, Any], out: Path) -> Iterator[str]:
    """What `evaluate.py` prints of its `evaluation.json`: the metrics below what they were measured on, in 80 columns."""
    rows, protocol, timing = summary["metrics"], summary["protocol"], summary["timing"]
    width = max(map(len, rows))
    for of in dict.fromkeys(row["of"] for row in rows.values()):
        group = {name: row for name, row in rows.items() if row["of"] == of}
        yield from ("", *fold(of))
        for name, row in group.items():
            spread = f"± {row['spread']:.2g} ({row['spread_of']})" if "spread" in row else ""
            better = next((text for start, text in _BETTER.items() if name.startswith(start)), "")
            yield f"  {name:<{width}}  {row['value']:<9.4g}  {spread:<20}  {better}".rstrip()
        notes: dict[str, list[str]] = {row.get("note", ""): [] for row in group.values()}
        for name, row in group.items():
            notes[row.get("note", "")].append(name)
        told = "; ".join(f"{', '.join(names)}: {note}" for note, names in notes.items() if note not in ("", of))
        yield from fold(told, indent="  ")
    sampler = named("sampler", protocol["sampler"])
    evaluations, seeds = protocol["network_evaluations_per_image"], ", ".join(map(str, protocol["seeds"]))
    yield from ("", *fold(f"{protocol['weights']} weights of {protocol['checkpoint']}"))
    yield from fold(
        f"{sampler}, {protocol['steps']} steps, {evaluations} network evaluations per image, seed {seeds}, "
        f"{timing['images_per_second_of_one_process']:.1f} images/s per process"
    )
    yield str(out / "evaluation.json")


def fold(text: str, *, indent: str = "") -> list[str]:
    """Lines of at most 80 characters; paths are not broken."""
    return textwrap.wrap(
        text, _WIDTH, initial_indent=indent, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def aligned(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """A table in 80 columns: columns that do not fit follow below, beside the first one, which is folded where it is long."""
    first = [textwrap.wrap(row[0], _WIDTH // 2) or [""] for row in [head, *rows]]
    left = max(len(line) for lines in first for line in lines)
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    start = 1
    while start < len(head):
        end = start + 1
        while end < len(head) and left + sum(2 + width for width in widths[start : end + 1]) <= _WIDTH:
            end += 1
        if start > 1:
            yield ""
        for lines, row in zip(first, [head, *rows], strict=True):
            cells = "".join(f"  {row[i]:>{widths[i]}}" for i in range(start, end))
            yield f"{lines[0]:<{left}}{cells}"
            yield from lines[1:]
        start = end
