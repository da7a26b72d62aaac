"""The report of a folder and what W&B gets of it, in the words of what was done."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ddpm_lightning.errors import UserError
from ddpm_lightning.report.publishing import publish, wandb_of
from ddpm_lightning.report.reading import Setting, leaves, part
from ddpm_lightning.report.writing import compare, write

__all__ = ["differing_keys", "report_sweep", "report_with_dashboard"]

_PROJECT = "ddpm_lightning"  # that conf/logger/wandb.yaml names


def report_sweep(folder: Path) -> list[str]:
    """Write the report that a sweep ends in, and give it to W&B where its runs were logged there.

    Raises:
        UserError: where the folder holds no run of train.py.
    """
    report = compare(folder)
    written = [str(path) for path in write(report)]
    published = publish(report)
    return written if published is None else [*written, f"W&B: {published.where}"]


def report_with_dashboard(folder: Path | None, *, project: str | None, entity: str | None) -> Iterator[str]:
    """Lay out the dashboard of a W&B project, for a folder of runs behind its report and for their sweep; a line for each thing done.

    Args:
        folder: of runs; None for the dashboard alone.
        project: None for the runs' own, or the default one.
        entity: None for the runs' own, or the account's.

    Raises:
        UserError: where wandb-workspaces is not installed, the folder holds no run, or W&B gives no access.
    """
    try:
        from ddpm_lightning.report import workspace
    except ImportError as error:
        raise UserError(
            "--wandb needs the package wandb-workspaces: pip install 'ddpm_lightning[workspaces]'"
        ) from error
    sweep = None
    if folder is not None:
        report = compare(folder)
        yield from map(str, write(report))
        if found := wandb_of(report.settings):
            project, entity = project or found[1].get("project"), entity or found[1].get("entity")
        if published := publish(report):
            yield f"W&B: {published.where}"
            if published.group:
                sweep = workspace.Sweep(published.group, differing_keys(report.settings))
    yield workspace.save(project or _PROJECT, entity, sweep)


def differing_keys(settings: Sequence[Setting]) -> list[str]:
    """Keys of the config by which W&B can tell the settings apart: one for each that was typed, and more where these are not enough."""
    configs = [setting.runs[0].config for setting in settings]
    every = dict.fromkeys(leaf for config in configs for leaf in leaves(config))
    differing = [leaf for leaf in every if leaf != "run_dir" and _told_apart(configs, [leaf]) > 1]
    found: list[str] = []
    for key in settings[0].values:
        found += [leaf for leaf in differing if f"{leaf}.".startswith(f"{key.replace('/', '.')}.")][:1]
    for leaf in differing:
        if _told_apart(configs, [*found, leaf]) > _told_apart(configs, found):
            found.append(leaf)
    return found


def _told_apart(configs: Sequence[Any], keys: Sequence[str]) -> int:
    return len({json.dumps([part(config, key) for key in keys], sort_keys=True) for config in configs})
