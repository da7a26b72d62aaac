"""Publish a report to W&B: a run in the group of the compared runs, and the project's dashboard."""

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import OmegaConf

from ddpm_lightning.errors import brief, optional_package
from ddpm_lightning.images import open_image
from ddpm_lightning.plots import draw_curves
from ddpm_lightning.report.page import Section
from ddpm_lightning.report.ranking import validations, winner
from ddpm_lightning.report.reading import Setting, flat
from ddpm_lightning.report.tables import plain
from ddpm_lightning.report.writing import Report, compare, write
from ddpm_lightning.run_folder import SWEEP
from ddpm_lightning.runs.build_loggers import build_loggers, keep_wandb_id, sweep_name
from ddpm_lightning.runs.trust import check_targets

__all__ = ["Published", "differing_keys", "publish", "report_sweep", "report_with_dashboard"]

_PROJECT = "ddpm_lightning"  # the default in conf/logger/wandb.yaml


class Published(NamedTuple):
    """Where a report is published, or why it is not, as text; and its W&B group, if any."""

    where: str
    group: str | None = None


def report_sweep(folder: Path, *, metric: str | None = None) -> list[str]:
    """Write a sweep's report, publish it to W&B if its runs were logged there, and return one line for each.

    Args:
        folder: the sweep's.
        metric: the first line is the verdict by this metric; None is the report's first.

    Raises:
        UserError: if the folder holds no run of train.py.
    """
    report = compare(folder)
    written = [str(path) for path in write(report)]
    best = plain((metric and winner(metric, report.settings)) or report.page.verdicts[0])
    published = publish(report)
    where = [] if published is None else [f"W&B: {published.where}"]
    return [*filter(None, [best]), *written, *where]


def report_with_dashboard(
    *folders: Path, out: Path | None = None, project: str | None, entity: str | None
) -> Iterator[str]:
    """Save the dashboard of a W&B project; for folders of runs, write the report first and add the sweep's dashboard.

    Args:
        folders: folders of runs; none of them saves the dashboard only.
        out: where to write the report, see `write_report`.
        project: the W&B project; None is the runs' own, or the default.
        entity: the W&B entity; None is the runs' own, or the account's.

    Yields:
        One line for each thing done.

    Raises:
        UserError: if wandb-workspaces is not installed, the folder holds no run, or W&B denies access.
    """
    with optional_package("wandb-workspaces", "workspaces", needed_by="--wandb"):
        from ddpm_lightning.report import workspace
    sweep = None
    if folders:
        report = compare(*folders, out=out)
        yield from map(str, write(report))
        if found := _wandb_of(report.settings):
            project, entity = project or found[1].get("project"), entity or found[1].get("entity")
        if published := publish(report):
            yield f"W&B: {published.where}"
            if published.group:
                sweep = workspace.Sweep(published.group, differing_keys(report.settings))
    yield workspace.save(project or _PROJECT, entity, sweep)


def differing_keys(settings: Sequence[Setting]) -> list[str]:
    """Config keys that tell the settings apart in W&B: one per typed key, and more if these are not enough."""
    configs = [flat(setting.config) for setting in settings]

    def told_apart(*keys: str) -> int:
        return len({json.dumps([config.get(key) for key in keys], sort_keys=True) for config in configs})

    every = dict.fromkeys(key for config in configs for key in config if key != "run_dir")
    differing = [key for key in every if told_apart(key) > 1]
    found: list[str] = []
    for typed in settings[0].values:
        found += [key for key in differing if f"{key}.".startswith(f"{typed.replace('/', '.')}.")][:1]
    for key in differing:
        if told_apart(*found, key) > told_apart(*found):
            found.append(key)
    return found


def publish(report: Report) -> Published | None:
    """Publish a written report to W&B, online or offline like its runs; None if no run was logged there.

    Failures are returned as text, so a failed report never fails a sweep.
    """
    found = _wandb_of(report.settings)
    if found is None:
        return None
    try:
        return _publish(report, *found)
    except Exception as error:  # W&B's package raises errors of many types
        return Published(f"did not receive the report ({brief(error)})")


def _wandb_of(settings: Sequence[Setting]) -> tuple[str, Mapping[str, Any]] | None:
    """Name and config of the first W&B logger among the runs."""
    for run in (run for setting in settings for run in setting.runs):
        for name, node in (run.config.get("logger") or {}).items():
            if isinstance(node, Mapping) and str(node.get("_target_")).endswith(".WandbLogger"):
                return name, node
    return None


def _publish(report: Report, name: str, node: Mapping[str, Any]) -> Published:
    check_targets(node, "logger")  # the runs may be untrusted
    here = report.folder.resolve() / "report"
    began = Path(str(report.settings[0].config["run_dir"]))  # names their group, even if they were moved
    group = node.get("group") or (sweep_name(began) if (report.folder / SWEEP).exists() else None)
    ours = {"group": group, "name": "report", "job_type": "report", "save_dir": str(here), "log_model": False}
    loggers = build_loggers(OmegaConf.create({name: {**node, **ours}}), here, tagged=False)
    keep_wandb_id(here, loggers)
    logger: Any = loggers[0]
    if (run := logger.experiment) is None:
        return Published("did not receive the report")
    try:
        logger.log_hyperparams({"settings": len(report.settings), "runs": sum(len(s.runs) for s in report.settings)})
        columns, rows = _results(report.settings)
        logger.log_table("report/results", columns=columns, data=rows)
        for section in report.page.sections:
            if figures := _figures(section):
                images, captions = [open_image(BytesIO(png)) for _, png in figures], [caption for caption, _ in figures]
                key = re.sub(r"\W+", "_", section.heading.lower())
                logger.log_image(f"report/{key}", images, caption=captions)
        run.log_artifact(str(report.folder / "report.html"), name=f"report-{run.id}", type="report")
        run.summary.update(_best_values(report.settings))
    finally:
        where = logger.finish(0) or "did not receive the report"
    return Published(where, group)


def _figures(section: Section) -> list[tuple[str, bytes]]:
    """The captions and PNG files of a section's samples and charts."""
    charts = [
        (p.caption, draw_curves(p.curves, title=p.title, x_label=p.x_label, may_be_log=p.may_be_log))
        for p in section.plots
    ]
    return [*section.figures, *charts]


def _results(settings: Sequence[Setting]) -> tuple[list[str], list[list[Any]]]:
    """The results, unrounded: column names, and one row per setting."""
    keys, metrics = list(settings[0].values), [ranking.metric for ranking in validations(settings)]
    head = [*keys, "seeds", *(column for m in metrics for column in (m.name, f"{m.name} deviation"))]
    rows: list[list[Any]] = []
    for setting in settings:
        rows.append([*setting.values.values(), len(setting.finished)])
        for mean in (metric.mean(setting) for metric in metrics):
            rows[-1] += [None, None] if mean is None else [mean.mean, _or_none(mean.deviation)]
    return head, rows


def _best_values(settings: Sequence[Setting]) -> dict[str, Any]:
    """For each comparable metric: the best setting, its mean, deviation and number of seeds."""
    found: dict[str, Any] = {}
    for ranking in validations(settings):
        if not ranking.incomparable:
            key, (setting, mean) = f"best/{ranking.metric.name}", ranking.ranked[0]
            found |= {key: mean.mean, f"{key}_deviation": _or_none(mean.deviation)}
            found |= {f"{key}_seeds": mean.n, f"{key}_setting": setting.name}
    return found


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value
