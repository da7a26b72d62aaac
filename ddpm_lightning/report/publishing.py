"""A report as a run of its own in W&B, in the group of the runs that it compares."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import OmegaConf

from ddpm_lightning.errors import brief
from ddpm_lightning.images import open_image
from ddpm_lightning.report.answer import comparable, measured
from ddpm_lightning.report.page import Block, Gallery, Heading, Sheet
from ddpm_lightning.report.reading import Setting
from ddpm_lightning.report.writing import Report
from ddpm_lightning.run_folder import SWEEP
from ddpm_lightning.runs.build_loggers import build_loggers, keep_wandb_id, sweep_name
from ddpm_lightning.runs.trust import check_targets

__all__ = ["Published", "best_values", "pictures", "publish", "results", "wandb_of"]


class Published(NamedTuple):
    """Where a report is to be seen, or why it is not, in words; and its group, None where it is in none."""

    where: str
    group: str | None = None


def publish(report: Report) -> Published | None:
    """Give W&B what a written report holds, online or offline as its runs were; None where no run was logged there.

    Whatever fails is said in the words: a report is no reason for a sweep to fail.
    """
    found = wandb_of(report.settings)
    if found is None:
        return None
    try:
        return _publish(report, *found)
    except Exception as error:  # W&B's package raises errors of many types
        return Published(f"has not taken the report ({brief(error)})")


def wandb_of(settings: Sequence[Setting]) -> tuple[str, Mapping[str, Any]] | None:
    """The name and the config of the first W&B logger among the runs."""
    for setting in settings:
        for run in setting.runs:
            for name, node in (run.config.get("logger") or {}).items():
                if isinstance(node, Mapping) and str(node.get("_target_")).endswith(".WandbLogger"):
                    return name, node
    return None


def results(settings: Sequence[Setting]) -> tuple[list[str], list[list[Any]]]:
    """The table of results with whole numbers: the names of its columns, and a row for each setting."""
    keys = list(settings[0].values)
    metrics = measured(settings)
    head = [*keys, "seeds", *(column for metric in metrics for column in (metric, f"{metric} deviation"))]
    rows: list[list[Any]] = []
    for setting in settings:
        row: list[Any] = [*(setting.values[key] for key in keys), len(setting.finished)]
        for metric in metrics:
            mean = setting.mean("best", metric)
            row += [None, None] if mean is None else [mean.mean, _or_none(mean.deviation)]
        rows.append(row)
    return head, rows


def best_values(settings: Sequence[Setting]) -> dict[str, Any]:
    """Of each metric that compares: the best setting, its mean, deviation and seeds."""
    found: dict[str, Any] = {}
    for metric, ranked in comparable(settings).items():
        if mean := ranked[0].mean("best", metric):
            found[f"best/{metric}"] = mean.mean
            found[f"best/{metric}_deviation"] = _or_none(mean.deviation)
            found[f"best/{metric}_seeds"] = mean.n
            found[f"best/{metric}_setting"] = ranked[0].name
    return found


def pictures(blocks: Sequence[Block]) -> Iterator[tuple[str, list[tuple[str, bytes]]]]:
    """The page's pictures by W&B's key, `report/<heading>`: what each one shows, and its PNG file."""
    heading = ""
    for block in blocks:
        match block:
            case Heading(text):
                heading = re.sub(r"\W+", "_", text.lower())
            case Gallery(shown):
                yield f"report/{heading}", [*shown]
            case Sheet(columns, rows):
                named = [
                    (f"{row.name.strip('`')}, {column}", file)
                    for row in rows
                    for column, file in zip(columns, row.files, strict=True)
                    if file is not None
                ]
                yield f"report/{heading}", named


def _publish(report: Report, name: str, node: Mapping[str, Any]) -> Published:
    check_targets(node, "logger")  # the runs may be a stranger's
    here = report.folder.resolve() / "report"
    began = Path(str(report.settings[0].runs[0].config["run_dir"]))  # names their group, also where they were moved
    group = node.get("group") or (sweep_name(began) if (report.folder / SWEEP).exists() else None)
    ours = {"group": group, "name": "report", "job_type": "report", "save_dir": str(here), "log_model": False}
    loggers: list[Any] = [*build_loggers(OmegaConf.create({name: {**node, **ours}}), here, tagged=False)]
    keep_wandb_id(here, loggers)
    (logger,) = loggers
    if (run := logger.experiment) is None:
        return Published("has not taken the report")
    try:
        logger.log_hyperparams({"settings": len(report.settings), "runs": sum(len(s.runs) for s in report.settings)})
        columns, rows = results(report.settings)
        logger.log_table("report/results", columns=columns, data=rows)
        for key, shown in pictures(report.blocks):
            images = [open_image(BytesIO(file)) for _, file in shown]
            logger.log_image(key, images, caption=[what for what, _ in shown])
        run.log_artifact(str(report.folder / "report.html"), name=f"report-{run.id}", type="report")
        run.summary.update(best_values(report.settings))
    finally:
        where = logger.finish(0) or "has not taken the report"
    return Published(where, group)


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value
