"""A folder of runs to `report.html` and `report.md`."""

import os
import shlex
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from ddpm_lightning.errors import UserError
from ddpm_lightning.files import replace_file
from ddpm_lightning.plots import look
from ddpm_lightning.records import read_record
from ddpm_lightning.report.answer import METRICS, answer, comparable, incomparable, measured
from ddpm_lightning.report.comparison import LEVEL, Distance, Mean
from ddpm_lightning.report.figures import curves, errors_by_log_snr, last_samples, quartiles, schedule_curves
from ddpm_lightning.report.page import (
    Block,
    Details,
    Gallery,
    Heading,
    Row,
    Sheet,
    SheetRow,
    Table,
    Text,
    to_html,
    to_markdown,
)
from ddpm_lightning.report.reading import Run, Setting, job_number, part, read_runs, settings_of
from ddpm_lightning.report.rebuilding import evaluations_of
from ddpm_lightning.run_folder import SWEEP, failed_jobs_in

__all__ = ["Report", "compare", "write", "write_report"]

_RULE = (
    f"A distance is **clear** where a t-test gives p < {LEVEL:g}, and else **within** the spread: it may be chance. Where two "
    "settings share two seeds or more, the test compares seed by seed, since a seed fixes the split of the data, the first weights "
    "and the noise: a distance can be clear though the deviations overlap. Elsewhere it is Welch's. The p-values are of one pair "
    "at a time; the best of many settings looks better than it is."
)


_IMAGES = 12  # of a setting in the contact sheet, whatever the number of its seeds


class Report(NamedTuple):
    """What is known of a folder of runs, and the page that says it."""

    folder: Path
    title: str
    settings: Sequence[Setting]
    blocks: Sequence[Block]


def write_report(folder: Path) -> list[Path]:
    """Compare the runs at and below a folder, and return the paths of `report.html` and `report.md`, which are put in it.

    Raises:
        UserError: where the folder holds no run of train.py.
    """
    return write(compare(folder))


def compare(folder: Path) -> Report:
    """The runs at and below a folder, compared.

    Raises:
        UserError: where it holds no run of train.py.
    """
    runs = read_runs(folder)
    settings = settings_of(runs)
    keys = ", ".join(settings[0].values) or folder.resolve().name
    title = f"{keys}: {_count(len(settings), 'setting')}, {_count(len(runs), 'run')}"
    blocks = [
        *_answers(settings),
        *_results(settings),
        *_unfinished(folder, runs),
        *_samples(settings),
        *_curves(settings),
        *_cost(settings),
        *_origin(folder, settings),
    ]
    return Report(folder, title, settings, blocks)


def write(report: Report) -> list[Path]:
    """Put the page into its folder as `report.html` and `report.md`, and return their paths."""
    page = (report.title, report.blocks)
    written = {"report.html": to_html(*page), "report.md": to_markdown(*page)}
    for name, text in written.items():
        with replace_file(report.folder / name) as file:
            file.write(text)
    return [report.folder / name for name in written]


def _answers(settings: Sequence[Setting]) -> Iterator[Block]:
    said = [text for metric in METRICS if (text := answer(metric, settings))]
    none = "No run has finished with a validation, so that there is nothing to compare yet."
    yield from (Text(text, "answer") for text in said or [none])


def _results(settings: Sequence[Setting]) -> Iterator[Block]:
    metrics, ranked = measured(settings), comparable(settings)
    several = len(settings) > 1
    keys = list(settings[0].values) or ["setting"]
    head = [f"`{key}`" if settings[0].values else key for key in keys] + ["seeds"]
    for metric in metrics:
        head += [f"`{metric}`"] + ["above the best"] * (several and metric in ranked)
    rows = []
    for i, setting in enumerate(settings):
        cells = [*setting.values.values()] or ["all runs"]
        cells.append(str(len(setting.finished)))
        for metric in metrics:
            mean = setting.mean("best", metric)
            best = ranked[metric][0] if metric in ranked else None
            text = "–" if mean is None else str(mean)
            cells.append(f"**{text}**" if several and best is setting else text)
            if several and best is not None:
                cells.append(_distance(mean, best.mean("best", metric), best is setting))
        rows.append(Row(cells, look(i)))
    yield Heading("Results")
    yield Table(head, rows, len(keys))
    values = (
        "Of each finished run the best of its validations (`best` in its summary.json; less is better), then mean ± standard "
        "deviation over the seeds (with n − 1)."
    )
    yield Text(values, "note")
    if several and ranked:
        yield Details("What is clear, and what is within the spread?", _RULE)


def _distance(mean: Mean | None, best: Mean | None, is_best: bool) -> str:
    if mean is None or best is None:
        return "–"
    return "–" if is_best else str(Distance.between(best, mean))


def _unfinished(folder: Path, runs: Sequence[Run]) -> Iterator[Block]:
    noted = failed_jobs_in(folder)
    rows = []
    for run in runs:
        note = noted.pop(job_number(run.folder), None) if run.folder.parent == folder else None
        if run.status != "finished":
            why = note["why"] if note else f"after {run.summary['steps']} steps" if "steps" in run.summary else "–"
            rows.append(Row([_code(_relative(run.folder, folder)), run.status, why]))
    rows += [Row([f"job {number}", "failed", f"{_code(j['overrides'])}: {j['why']}"]) for number, j in noted.items()]
    if rows:
        yield Heading("Not finished")
        yield Table(["job", "status", "why"], rows, 3)
        yield Text("These count in no mean above.", "note")


def _curves(settings: Sequence[Setting]) -> Iterator[Block]:
    means = "Mean over the seeds; the band reaches from the least run to the greatest."
    if differ := incomparable("val/loss", settings):
        means += f" The settings' losses do not compare, since they differ in {' and '.join(map(_code, differ))}."
    errors = (
        "The squared error of the predicted noise at fixed levels of it (`mse_at_log_snr/...` in metrics.csv), from the last "
        "time that each run measured it; 1 is what guessing no noise gives. These compare, whatever schedules, predictions and "
        "losses the settings differ in. The band reaches from the least run to the greatest."
    )
    for title, pictures, note in (
        ("Curves", [*curves(settings)], means),
        ("Error by log SNR", [*errors_by_log_snr(settings)], errors),
        ("Loss by quarter of t", [*quartiles(settings)], ""),
        ("Schedules", [*schedule_curves(settings)], ""),
    ):
        if pictures:
            yield Heading(title)
            yield from [Text(note, "note")] if note else []
            yield Gallery(pictures)


def _samples(settings: Sequence[Setting]) -> Iterator[Block]:
    seeds = sorted({run.seed for setting in settings for run in setting.runs})[: _IMAGES // 3]
    count = _IMAGES // len(seeds)
    rows = []
    for i, setting in enumerate(settings):
        of_seed = {run.seed: run for run in setting.runs}
        files = [last_samples(of_seed[seed], count=count) if seed in of_seed else None for seed in seeds]
        rows += [SheetRow(_code(setting.name), look(i), files)] if any(files) else []
    if rows:
        keys = ("callbacks.sample_grid.seed", "data.image_size", "data.channels")
        noises = [[part(setting.runs[0].config, key) for key in keys] for setting in settings]
        shared = noises[0][0] is not None and all(noise == noises[0] for noise in noises)
        same = " Images below each other are drawn from the same noise." if shared else ""
        yield Heading("Samples")
        yield Text(f"From each run's last picture.{same}", "note")
        yield Sheet([f"seed {seed}" for seed in seeds], rows)


def _cost(settings: Sequence[Setting]) -> Iterator[Block]:
    entries = ("wall_seconds", "images_per_second", "parameters", "steps", "processes")
    rows = []
    for i, setting in enumerate(settings):
        means = [setting.mean(entry) for entry in entries]
        evaluations = evaluations_of(setting.runs[0].config)
        cells = ["–" if m is None else f"{m.mean:,.0f}" for m in means]
        cells.append("–" if evaluations is None else f"{evaluations:,}")
        rows.append(Row([_code(setting.name), *cells], look(i)))
    yield Heading("Cost")
    head = ["setting", "wall seconds", "images/s", "parameters", "steps", "processes", "evaluations/sample"]
    yield Table(head, rows)
    yield Text(
        "Means over the seeds; the seconds include validations and pictures, the images per second do not. The evaluations are "
        "those of the network for one sample by the run's own `sampler`.",
        "note",
    )


def _origin(folder: Path, settings: Sequence[Setting]) -> Iterator[Block]:
    yield Heading("How it was made")
    with suppress(UserError, LookupError, TypeError):  # the folder of no sweep, or a damaged record
        typed = read_record(folder / SWEEP)["hydra"]["overrides"]["task"]
        yield Text(_code(f"python train.py -m {shlex.join(map(str, typed))}"))
    rows = [
        Row([_code(_relative(run.folder, folder)), setting.name, str(run.seed), run.status], look(i))
        for i, setting in enumerate(settings)
        for run in setting.runs
    ]
    yield Table(["folder", "setting", "seed", "status"], rows, 4)
    yield Text(f"This page again: `python -m ddpm_lightning report {os.path.relpath(folder)}`", "note")


def _relative(path: Path, folder: Path) -> str:
    return os.path.relpath(path, folder)


def _code(text: str) -> str:
    return f"`{text}`"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
