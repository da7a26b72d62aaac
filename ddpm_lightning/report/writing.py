"""Write `report.html` and `report.md` for a folder of runs."""

import os
import shlex
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from ddpm_lightning.errors import UserError
from ddpm_lightning.files import replace_file
from ddpm_lightning.plots import line_style
from ddpm_lightning.records.yaml import read_record
from ddpm_lightning.report.comparison import LEVEL, Distance
from ddpm_lightning.report.figures import curves, errors_by_log_snr, last_samples, quartiles, schedule_curves
from ddpm_lightning.report.page import Figure, Row, Section, Sheet, SheetRow, Table, render
from ddpm_lightning.report.ranking import METRICS, incomparable, measured, rankings, verdict
from ddpm_lightning.report.reading import Run, Setting, job_number, part, read_runs, settings_of
from ddpm_lightning.report.rebuilding import evaluations_of
from ddpm_lightning.run_folder import SWEEP, failed_jobs_in

__all__ = ["Report", "compare", "write", "write_report"]

_RULE = (
    f"A difference is **clear** if a t-test gives p < {LEVEL:g}, and otherwise **within** the spread: it may be chance. If two "
    "settings share at least two seeds, the test is paired by seed, since a seed fixes the data split, the initial weights "
    "and the noise: a difference can be clear even if the deviations overlap. Otherwise it is Welch's test. The p-values are "
    "not corrected for multiple comparisons, so the best of many settings looks better than it is."
)
_IMAGES = 12  # per setting in the contact sheet, over all seeds


class Report(NamedTuple):
    """A report on a folder of runs."""

    folder: Path
    settings: Sequence[Setting]
    title: str
    verdicts: Sequence[str]
    sections: Sequence[Section]


def write_report(folder: Path) -> list[Path]:
    """Compare the runs at and below a folder, and return the paths of `report.html` and `report.md` in it.

    Raises:
        UserError: if the folder holds no run of train.py.
    """
    return write(compare(folder))


def compare(folder: Path) -> Report:
    """Compare the runs at and below a folder.

    Raises:
        UserError: if it holds no run of train.py.
    """
    runs = read_runs(folder)
    settings = settings_of(runs)
    keys = ", ".join(settings[0].values) or folder.resolve().name
    title = f"{keys}: {_count(len(settings), 'setting')}, {_count(len(runs), 'run')}"
    verdicts = [text for metric in METRICS if (text := verdict(metric, settings))]
    none = "No finished run has a validation yet, so there is nothing to compare."
    sections = [
        _results(settings),
        *_unfinished(folder, runs),
        *_samples(settings),
        *_curves(settings),
        _cost(settings),
        _origin(folder, settings),
    ]
    return Report(folder, settings, title, verdicts or [none], sections)


def write(report: Report) -> list[Path]:
    """Write `report.html` and `report.md` into the report's folder, and return their paths."""
    written = []
    for form in ("html", "md"):
        written.append(report.folder / f"report.{form}")
        with replace_file(written[-1]) as file:
            file.write(render(form, report.title, report.verdicts, report.sections))
    return written


def _results(settings: Sequence[Setting]) -> Section:
    metrics, ranked = measured(settings), rankings(settings)
    several = len(settings) > 1
    keys = list(settings[0].values) or ["setting"]
    head = [f"`{key}`" if settings[0].values else key for key in keys] + ["seeds"]
    for metric in metrics:
        head += [f"`{metric}`"] + ["above the best"] * (several and metric in ranked)
    rows = []
    for i, setting in enumerate(settings):
        cells = [*(setting.values.values() or ["all runs"]), str(len(setting.finished))]
        for metric in metrics:
            mean = setting.best(metric)
            text = "–" if mean is None else str(mean)
            if several and metric in ranked:
                best, least = ranked[metric][0]
                apart = "–" if mean is None or best is setting else str(Distance.between(least, mean))
                cells += [f"**{text}**" if best is setting else text, apart]
            else:
                cells.append(text)
        rows.append(Row(cells, line_style(i)))
    note = (
        "The best validation of each finished run (`best` in its summary.json; lower is better), as mean ± standard "
        "deviation over the seeds (with n − 1)."
    )
    details = ("When is a difference clear?", _RULE) if several and ranked else None
    return Section("Results", table=Table(head, rows, len(keys)), note=note, details=details)


def _unfinished(folder: Path, runs: Sequence[Run]) -> Iterator[Section]:
    noted = failed_jobs_in(folder)
    rows = []
    for run in runs:
        note = noted.pop(job_number(run.folder), None) if run.folder.parent == folder else None
        if run.status != "finished":
            why = note["why"] if note else f"after {run.summary['steps']} steps" if "steps" in run.summary else "–"
            rows.append(Row([_relative(run.folder, folder), run.status, why]))
    rows += [Row([f"job {number}", "failed", f"`{j['overrides']}`: {j['why']}"]) for number, j in noted.items()]
    if rows:
        table = Table(["job", "status", "why"], rows, 3)
        yield Section("Not finished", table=table, note="These runs are excluded from the means above.")


def _samples(settings: Sequence[Setting]) -> Iterator[Section]:
    seeds = sorted({run.seed for setting in settings for run in setting.runs})[: _IMAGES // 3]
    rows = []
    for i, setting in enumerate(settings):
        files = {run.seed: last_samples(run, count=_IMAGES // len(seeds)) for run in setting.runs if run.seed in seeds}
        figures = [
            Figure(f"{setting.name}, seed {seed}", file) if (file := files.get(seed)) else None for seed in seeds
        ]
        rows += [SheetRow(setting.name, line_style(i), figures)] if any(figures) else []
    if rows:
        keys = ("callbacks.sample_grid.seed", "data.image_size", "data.channels")
        noises = [[part(setting.config, key) for key in keys] for setting in settings]
        shared = noises[0][0] is not None and all(noise == noises[0] for noise in noises)
        same = " Images in a column are sampled from the same noise." if shared else ""
        sheet = Sheet([f"seed {seed}" for seed in seeds], rows)
        yield Section("Samples", f"From each run's last figure.{same}", sheet=sheet)


def _curves(settings: Sequence[Setting]) -> list[Section]:
    means = "Mean over the seeds; the band spans the minimum and maximum."
    if differ := incomparable("val/loss", settings):
        keys = " and ".join(f"`{key}`" for key in differ)
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


def _cost(settings: Sequence[Setting]) -> Section:
    entries = ("wall_seconds", "images_per_second", "parameters", "steps", "processes")
    rows = []
    for i, setting in enumerate(settings):
        means = [setting.mean(entry) for entry in entries]
        evaluations = evaluations_of(setting.config)
        cells = ["–" if m is None else f"{m.mean:,.0f}" for m in means]
        cells.append("–" if evaluations is None else f"{evaluations:,}")
        rows.append(Row([f"`{setting.name}`", *cells], line_style(i)))
    head = ["setting", "wall seconds", "images/s", "parameters", "steps", "processes", "evaluations/sample"]
    note = (
        "Means over the seeds; the seconds include validation and figures, the images per second do not. Evaluations are "
        "network evaluations per sample with the run's own `sampler`."
    )
    return Section("Cost", table=Table(head, rows), note=note)


def _origin(folder: Path, settings: Sequence[Setting]) -> Section:
    command = ""
    with suppress(UserError, LookupError, TypeError):  # not a sweep, or a damaged record
        typed = read_record(folder / SWEEP)["hydra"]["overrides"]["task"]
        command = f"`python train.py -m {shlex.join(map(str, typed))}`"
    rows = [
        Row([_relative(run.folder, folder), setting.name, str(run.seed), run.status], line_style(i))
        for i, setting in enumerate(settings)
        for run in setting.runs
    ]
    again = f"Rebuild this page: `python -m ddpm_lightning report {os.path.relpath(folder)}`"
    return Section("How it was made", command, Table(["folder", "setting", "seed", "status"], rows, 4), note=again)


def _relative(path: Path, folder: Path) -> str:
    return f"`{os.path.relpath(path, folder)}`"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
