"""Write `report.html`, `report.md` and their tables for folders of runs."""

import math
import os
import shlex
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from re import fullmatch
from typing import NamedTuple

from ddpm_lightning import __version__, environment
from ddpm_lightning.errors import UserError
from ddpm_lightning.files import replace_file
from ddpm_lightning.records.yaml import read_record
from ddpm_lightning.report import sections
from ddpm_lightning.report.evaluated import evaluations
from ddpm_lightning.report.page import Page, Section, render
from ddpm_lightning.report.ranking import listed, validations
from ddpm_lightning.report.reading import Run, Setting, part, read_runs, settings_of
from ddpm_lightning.report.tables import Cell, Link, Row, Table, as_csv, as_latex
from ddpm_lightning.run_folder import SWEEP
from ddpm_lightning.runs.out_dir import make_out_dir

__all__ = ["Report", "compare", "title_of", "write", "write_report"]

_VALUES = 60  # characters of a setting's values in the title


class Report(NamedTuple):
    """A report on the runs in some folders, and the folder that it is written to."""

    folder: Path
    settings: Sequence[Setting]
    page: Page


def write_report(*folders: Path, out: Path | None = None) -> list[Path]:
    """Compare the runs at and below folders, and return the paths of `report.html` and `report.md`.

    Args:
        folders: runs, sweeps, or folders of these.
        out: where to write the report; None is the only folder.

    Raises:
        UserError: if a folder holds no run of train.py, or `out` is missing.
    """
    return write(compare(*folders, out=out))


def compare(*folders: Path, out: Path | None = None) -> Report:
    """Compare the runs at and below folders, see `write_report`."""
    runs = read_runs(*folders)
    if out is None and len(folders) > 1:
        raise UserError("out must be a folder for the report when the runs of several folders are compared, got None")
    out = folders[0] if out is None else out
    settings = settings_of(runs)
    evaluated, validated = evaluations(settings), validations(settings)
    verdicts = [
        f"Evaluation {i + 1}: {text}" if len(evaluated) > 1 else text
        for i, one in enumerate(evaluated)
        for text in one.verdicts
    ]
    verdicts += [ranking.verdict for ranking in sorted(validated, key=lambda r: bool(r.incomparable))]
    none = "No finished run has been validated, so there is nothing to compare."
    found = [
        *(sections.evaluated((i + 1) * (len(evaluated) > 1), one, settings) for i, one in enumerate(evaluated)),
        *(sections.results(ranking, settings) for ranking in validated),
        *sections.unfinished(folders, runs, out),
        *sections.samples(settings),
        *sections.charts(settings, next((r for r in validated if r.metric.name == "val/loss"), None)),
        sections.cost(settings),
        _origin(folders, settings, out),
    ]
    return Report(out, settings, Page(title_of(settings), [*_facts(runs)], verdicts or [none], found))


def write(report: Report) -> list[Path]:
    """Write `report.html`, `report.md` and `tables/` into the report's folder, and return the paths of the first two."""
    tables = report.folder / "tables"
    make_out_dir(report.folder)
    make_out_dir(tables, run_dir=report.folder)
    for table in (table for section in report.page.sections for table in section.tables):
        for form, text in (("csv", as_csv(table)), ("tex", as_latex(table))):
            with replace_file(tables / f"{table.name}.{form}", newline="") as file:
                file.write(text)
    written = []
    for form in ("html", "md"):
        written.append(report.folder / f"report.{form}")
        with replace_file(written[-1]) as file:
            file.write(render(form, report.page))
    return written


def title_of(settings: Sequence[Setting]) -> str:
    """The question that the settings answer: `Which schedule? linear, cosine × 3 seeds on digits`."""
    keys = [*settings[0].values]
    seeds = sorted({len({run.seed for run in setting.runs}) for setting in settings})
    many = f"{seeds[0]}–{seeds[-1]} seeds" if len(seeds) > 1 else _count(seeds[0], "seed")
    sources = [
        part(s.config, "data.dataset.source._target_") or part(s.config, "data.dataset._target_") for s in settings
    ]
    datasets = {str(source).rpartition(".")[2] for source in sources}  # of torchvision's, or one of ours
    data = f" on {datasets.pop()}" if len(datasets) == 1 else ""
    if not keys:
        return f"One setting × {many}{data}"
    values = [[*dict.fromkeys(setting.values[key] for setting in settings)] for key in keys]
    grid = " × ".join(", ".join(row) for row in values)
    is_grid = math.prod(map(len, values)) == len(settings)
    shown = grid if is_grid and len(grid) <= _VALUES else _count(len(settings), "setting")
    names = keys if len(keys) <= 3 else [*keys[:2], f"{len(keys) - 2} more"]
    return f"Which {listed(names)}? {shown} × {many}{data}"


def _facts(runs: Sequence[Run]) -> Iterator[str]:
    """The number of runs, and when, by what code and with which versions they were trained."""
    finished = sum(run.status == "finished" for run in runs)
    yield f"{finished} of {_count(len(runs), 'run')} finished"
    if days := sorted({run.said("ended")[:10] for run in runs} - {""}):
        yield f"trained on {' to '.join(dict.fromkeys([days[0], days[-1]]))}"
    if commits := [*dict.fromkeys(run.said("git_commit")[:12] for run in runs if run.said("git_commit"))]:
        yield f"commit {', '.join(f'`{commit}`' for commit in commits[:3])}{' and others' * (len(commits) > 3)}"
    for name in ("ddpm_lightning", "torch", "lightning", "python"):
        if versions := [*dict.fromkeys(run.said(f"versions.{name}") for run in runs if run.said(f"versions.{name}"))]:
            yield f"{name.replace('python', 'Python')} {', '.join(versions[:3])}"
    yield f"page written on {datetime.now(UTC):%Y-%m-%d %H:%M} UTC by ddpm_lightning {__version__}"


def _origin(folders: Sequence[Path], settings: Sequence[Setting], out: Path) -> Section:
    """The commands, and the runs by folder."""
    commands = []
    for folder in folders:
        with suppress(UserError, LookupError, TypeError):  # not a sweep, or a damaged record
            typed = read_record(folder / SWEEP)["hydra"]["overrides"]["task"]
            commands.append(f"`{environment.command('train')} -m {shlex.join(map(str, typed))}`")
    linked = any(_address(run) for setting in settings for run in setting.runs)
    rows = []
    for i, setting in enumerate(settings):
        for run in setting.runs:
            cells: list[Cell] = [sections.relative(run.folder, out), f"`{setting.name}`", str(run.seed), run.status]
            cells += [run.said("ended")[:16].replace("T", " ") or None, run.said("git_commit")[:12] or None]
            rows.append(Row([*cells, *[_address(run)] * linked], i))
    head = ["folder", "setting", "seed", "status", "ended (UTC)", "commit", *["W&B"] * linked]
    words = [os.path.relpath(folder) for folder in folders]
    words += [] if [*folders] == [out] else ["--out", os.path.relpath(out)]
    again = f"Rebuild this page: `{environment.command('report')} {shlex.join(words)}`"
    return Section("How it was made", "; ".join(commands), Table("runs", head, rows, len(head)), again)


def _address(run: Run) -> Link | None:
    """The run's page at W&B, if it has one."""
    address = run.said("wandb")
    return Link(address) if fullmatch(r"https://[\w.:/~-]+", address) else None


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
