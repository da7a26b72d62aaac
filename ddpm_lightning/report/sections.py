"""The sections of a report: tables, samples and charts of the compared settings."""

import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from ddpm_lightning.report.comparison import FEWEST, LEVEL, Estimate, Mean
from ddpm_lightning.report.evaluated import Evaluated
from ddpm_lightning.report.figures import curves, errors_by_log_snr, last_samples, quartiles, schedule_curves
from ddpm_lightning.report.page import Figure, Section, Sheet, SheetRow
from ddpm_lightning.report.ranking import Ranking, listed
from ddpm_lightning.report.reading import Run, Setting, job_number, part
from ddpm_lightning.report.rebuilding import evaluations_of
from ddpm_lightning.report.tables import Cell, Row, Table
from ddpm_lightning.run_folder import failed_jobs_in

__all__ = ["charts", "cost", "evaluated", "relative", "results", "samples", "unfinished"]

_RULE = (
    f"Intervals are 95% confidence intervals of the mean over seeds (Student's t), for at least {FEWEST} seeds. Two settings are "
    f"compared by a paired t-test of their differences seed by seed where they share at least {FEWEST} seeds: a seed fixes the "
    "data split, the initial weights and the noise, whose effects cancel in the difference, which can thus be significant "
    "although the intervals overlap. Otherwise the test is Welch's. For each metric, the p-values are corrected by Holm's method "
    f"for all pairs of settings; a difference is significant if p < {LEVEL:g}, and may be chance otherwise. With fewer than {FEWEST} seeds "
    "there is no test and no verdict."
)
_IMAGES = 12  # per setting in the contact sheet, over all seeds
_PAIRS = 45  # shown at most, apart from those with the best


def results(ranking: Ranking, settings: Sequence[Setting]) -> Section:
    """A validation metric: the best and the last validation of each setting, best setting first, and all pairs."""
    metric, names = ranking.metric, len(_keys(settings))
    compares = len(ranking.ranked) > 1 and not ranking.incomparable
    head = [
        *_keys(settings),
        "seeds",
        "best validation",
        "last step",
        *["difference from the first", "p (Holm)"] * compares,
    ]
    rows = []
    for place, (setting, mean) in enumerate(ranking.ranked):
        last = setting.mean(f"final.{metric.name}")
        cells: list[Cell] = [*_names(setting), mean.n, mean.estimate, _estimate(last)]
        bold = {names + 1} if compares and not place else set()
        if compares:
            pair = ranking.pairs[place - 1] if place else None
            cells += [pair and pair.difference.estimate, pair and pair.p]
            bold |= {names + 4} if pair and pair.p < LEVEL else set()
        rows.append(Row(cells, settings.index(setting), frozenset(bold)))
    note = (
        "The best validation is the minimum of a run's noisy validations and thus slightly optimistic; the last step is not. "
        f"{_tests(ranking)}"
    )
    lead = "" if not ranking.incomparable else "For each setting alone, since these values cannot be compared."
    table = Table(_slug(f"results {metric.name}"), head, rows, names)
    pairs = _pairs([ranking], metric.name)
    return Section(f"Results by {metric.text} ({metric.better})", lead, table, note.strip(), pairs)


def evaluated(number: int, found: Evaluated, settings: Sequence[Setting]) -> Section:
    """The evaluations under one protocol: all metrics of each setting, in the order of the first metric, and all pairs.

    Args:
        number: which of several protocols; 0 for the only one.
        found: the evaluations.
        settings: all settings.
    """
    first = found.rankings[0]
    order = [*(setting for setting, _ in first.ranked)]
    order += [s for s in settings if s not in order and any(ranking.metric.mean(s) for ranking in found.rankings)]
    arrow = {True: "↓", False: "↑"}
    head = [*_keys(settings), "seeds", *(f"{r.metric.name} {arrow[r.metric.lower]}" for r in found.rankings)]
    names, rows = len(_keys(settings)), []
    for setting in order:
        means = [ranking.metric.mean(setting) for ranking in found.rankings]
        best = [len(r.ranked) > 1 and not r.incomparable and r.ranked[0][0] is setting for r in found.rankings]
        seeds = max((mean.n for mean in means if mean), default=0)
        cells: list[Cell] = [*_names(setting), seeds, *map(_estimate, means)]
        rows.append(Row(cells, settings.index(setting), frozenset(names + 1 + i for i, one in enumerate(best) if one)))
    note = "Means over the runs of a setting, whose seeds are the repeats; ↓ lower is better, ↑ higher is better, bold is the best mean."
    note = f"{note} {found.held_out}".strip()
    lead = f"By `evaluate.py`, all under one protocol: {found.protocol}."
    table = Table(f"evaluation_{number or 1}", head, rows, names)
    pairs = _pairs(found.rankings, f"evaluation {number or 1}")
    heading = f"Evaluation {number}" if number else "Evaluation"
    return Section(heading, lead, table, f"{note} {_tests(first)}".strip(), pairs)


def _tests(ranking: Ranking) -> str:
    """The test behind a table's p-values, in a sentence; empty if nothing was tested."""
    if not ranking.tested:
        return ""
    kinds = {pair.difference.paired for pair in ranking.pairs if not math.isnan(pair.p)}
    kind = (
        "paired t-test over the common seeds"
        if kinds == {True}
        else "Welch's t-test"
        if kinds == {False}
        else "paired or Welch's t-test"
    )
    number = ranking.tested
    corrected = f", corrected by Holm's method for {number} pairs of settings" if number > 1 else ""
    overlap = " It can be, although the intervals of two settings overlap." if True in kinds else ""
    return f"p-values: {kind}{corrected}; below {LEVEL:g}, in bold, a difference is significant.{overlap}"


def _pairs(rankings: Sequence[Ranking], name: str) -> tuple[str, str, Table | None] | None:
    """The explanation of the tests, and a table of all pairs of settings."""
    tested = [ranking for ranking in rankings if ranking.tested]
    if not any(ranking.pairs for ranking in rankings):
        return None
    several, rows = len(rankings) > 1, []
    for ranking in tested:
        shown = [pair for pair in ranking.pairs if not pair.first or len(ranking.pairs) <= _PAIRS]
        for pair in shown:
            one, other = (ranking.ranked[i][0].name for i in (pair.first, pair.second))
            difference = pair.difference
            test = "–" if math.isnan(difference.p) else "paired" if difference.paired else "Welch"
            cells: list[Cell] = [ranking.metric.name] * several
            cells += [f"`{other}` − `{one}`", test, difference.estimate, difference.p, pair.p]
            rows.append(Row(cells, None, frozenset({len(cells) - 1}) if pair.p < LEVEL else frozenset()))
    head = [*["metric"] * several, "difference", "test", "mean", "p, uncorrected", "p, Holm"]
    table = Table(_slug(f"pairs {name}"), head, rows, 2 + several) if rows else None
    return "How differences are tested" + (", and all pairs" if table else ""), _RULE, table


def unfinished(folders: Sequence[Path], runs: Sequence[Run], out: Path) -> Iterator[Section]:
    """Runs that have not finished, and jobs of sweeps that failed before they had a folder."""
    sweeps = dict.fromkeys([*folders, *(run.folder.parent for run in runs)])
    noted = {s: failed_jobs_in(s) for s in sweeps if any(s.is_relative_to(folder) for folder in folders)}
    rows = []
    for run in runs:
        note = noted.get(run.folder.parent, {}).pop(job_number(run.folder), None)
        if run.status != "finished":
            why = note["why"] if note else f"after {run.summary['steps']} steps" if "steps" in run.summary else None
            rows.append(Row([relative(run.folder, out), run.status, why]))
    for jobs in noted.values():
        rows += [Row([f"job {number}", "failed", f"`{j['overrides']}`: {j['why']}"]) for number, j in jobs.items()]
    if rows:
        table = Table("not_finished", ["job", "status", "why"], rows, 3)
        yield Section("Not finished", "", table, "These runs are excluded from all means.")


def samples(settings: Sequence[Setting]) -> Iterator[Section]:
    """The last samples of each setting, by seed."""
    seeds = sorted({run.seed for setting in settings for run in setting.runs})[: _IMAGES // 3]
    rows = []
    for i, setting in enumerate(settings):
        files = {run.seed: last_samples(run, count=_IMAGES // len(seeds)) for run in setting.runs if run.seed in seeds}
        figures = [
            Figure(f"Samples of {setting.name}, seed {seed}", file) if (file := files.get(seed)) else None
            for seed in seeds
        ]
        rows += [SheetRow(setting.name, i, figures)] if any(figures) else []
    if rows:
        keys = ("callbacks.sample_grid.seed", "data.image_size", "data.channels")
        noises = [[part(setting.config, key) for key in keys] for setting in settings]
        shared = noises[0][0] is not None and all(noise == noises[0] for noise in noises)
        same = " Images in a column are sampled from the same noise." if shared else ""
        sheet = Sheet([f"seed {seed}" for seed in seeds], rows)
        yield Section("Samples", f"From each run's last figure.{same}", sheet=sheet)


def charts(settings: Sequence[Setting], loss: Ranking | None) -> list[Section]:
    """The curves of training and validation, the noise-prediction error, and the schedules."""
    means = "Mean over the seeds; the band spans the minimum and maximum. Lower is better."
    if loss is not None and loss.incomparable:
        keys = listed([f"`{key}`" for key in loss.incomparable])
        means += f" The losses are not comparable, since the settings differ in {keys}."
    errors = (
        "The noise-prediction error at fixed log SNR (`mse_at_log_snr/...` in metrics.csv; lower is better), from each run's "
        "last measurement; predicting zero noise gives 1. Comparable across schedules, prediction types and losses. "
        "The band spans the minimum and maximum over the seeds."
    )
    sections = [
        Section("Curves", means, plots=[*curves(settings)]),
        Section("Noise-prediction error vs. log SNR", errors, plots=[*errors_by_log_snr(settings)]),
        Section("Loss by quartile of t", plots=[*quartiles(settings)]),
        Section("Schedules", plots=[*schedule_curves(settings)]),
    ]
    return [section for section in sections if section.plots]


def cost(settings: Sequence[Setting]) -> Section:
    """Time, size and network evaluations of each setting."""
    entries = ("wall_seconds", "images_per_second", "parameters", "steps", "processes")
    rows = []
    for i, setting in enumerate(settings):
        means = [setting.mean(entry) for entry in entries]
        cells = [None if m is None else round(m.mean) for m in means]
        rows.append(Row([f"`{setting.name}`", *cells, evaluations_of(setting.config)], i))
    head = ["setting", "wall seconds", "images/s", "parameters", "steps", "processes", "evaluations/sample"]
    note = (
        "Means over the seeds; the seconds include validation and figures, the images per second do not. Evaluations are "
        "network evaluations per sample with the run's own `sampler`."
    )
    return Section("Cost", "", Table("cost", head, rows), note)


def relative(path: Path, folder: Path) -> str:
    """A path as seen from a folder, as marked text."""
    return f"`{os.path.relpath(path, folder)}`"


def _keys(settings: Sequence[Setting]) -> list[str]:
    """The first columns' heads: the keys that tell settings apart."""
    return [f"`{key}`" for key in settings[0].values] or ["setting"]


def _names(setting: Setting) -> list[str]:
    return [f"`{value}`" for value in setting.values.values()] or ["all runs"]


def _estimate(mean: Mean | None) -> Estimate | None:
    return None if mean is None else mean.estimate


def _slug(text: str) -> str:
    """A file name of ASCII letters, digits and underscores."""
    return "".join(c if c.isascii() and c.isalnum() else "_" for c in text.lower())
