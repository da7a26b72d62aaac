"""The dashboard of a W&B project as code; the only module that imports wandb_workspaces."""

import os
import re
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from hashlib import sha256
from io import StringIO
from typing import Any, NamedTuple

import wandb
import wandb_workspaces.reports.v2.interface as wr
import wandb_workspaces.workspaces as ws

from ddpm_lightning.errors import UserError, brief

__all__ = ["Sweep", "save", "workspace"]

_SPEED = ("images_per_second", "wall_seconds", "mfu", "host_share", "peak_memory_gib")
_STEP = "trainer/global_step"
_SECONDS = 10  # timeout of W&B's API
_LEVELS = ("-08", "-04", "+00", "+04", "+08")  # levels of log SNR with their own panel


class Sweep(NamedTuple):
    """A sweep's W&B group, and the config keys in which its settings differ."""

    group: str
    keys: Sequence[str]


def workspace(entity: str, project: str, sweep: Sweep | None = None) -> ws.Workspace:
    """Build the dashboard of a project, with one curve per run, or of a sweep, with one curve and band per setting.

    A project's runs are sorted by group but not aggregated, since single runs have no group.
    """
    runs = ws.RunsetSettings(
        filters="" if sweep is None else ws.And(ws.Metric("Group") == sweep.group),
        groupby=[] if sweep is None else [ws.Config(key) for key in sweep.keys],
        order=[
            ws.Ordering(ws.Metric("Group"), ascending=False),
            ws.Ordering(ws.Metric("CreatedTimestamp"), ascending=False),
        ],
        pinned_columns=_columns(sweep.keys if sweep else ("model._target_", "schedule._target_", "prediction")),
    )
    return ws.Workspace(
        entity=entity,
        project=project,
        name="ddpm_lightning" if sweep is None else f"ddpm_lightning: {sweep.group}",
        sections=_sections(),
        settings=ws.WorkspaceSettings(x_axis=_STEP, max_runs=30),
        runset_settings=runs,
    )


def save(project: str, entity: str | None = None, sweep: Sweep | None = None) -> str:
    """Save the dashboard in a W&B project, replacing an earlier one, and return its URL.

    Raises:
        UserError: if W&B has no key, network or such project.
    """
    os.environ.setdefault("WANDB_SILENT", "true")  # the URL is printed only once
    try:
        with ExitStack() as afterwards:
            afterwards.callback(setattr, sys, "stdin", sys.stdin)
            sys.stdin = StringIO()  # without a key W&B would prompt for one
            api = wandb.Api(timeout=_SECONDS)
            entity = entity or api.settings.get("entity") or api.default_entity or ""
            made = workspace(entity, project, sweep)
            # One dashboard of each kind per project, identified by the input of its name's hash.
            id_ = sha256(made.name.encode()).hexdigest()[:11]
            made._internal_name = f"nw-{id_}-v"
            made._internal_id = _id_of_earlier(entity, project, id_)
            made.save()
            return made.url
    except Exception as error:  # W&B raises many types
        raise UserError(_sentence(error, project, entity)) from error


def _id_of_earlier(entity: str, project: str, name: str) -> str:
    try:
        return ws.Workspace.from_url(f"https://wandb.ai/{entity}/{project}?nw={name}")._internal_id
    except ValueError as error:
        if "Workspace" in str(error):  # the project exists but has none
            return ""
        raise


def _sections() -> list[ws.Section]:
    quarters = [
        _curve(f"train/loss_q{i}", title=f"train/loss, {(i - 1) / 4:g} < t/T ≤ {i / 4:g}", log_y=True)
        for i in range(1, 5)
    ]
    levels = [
        _curve(f"mse_at_log_snr/{level}", title=f"noise-prediction error at log SNR {int(level):+d}")
        for level in _LEVELS
    ]
    return [
        _section("Loss", [_curve("train/loss", log_y=True), _curve("val/loss", log_y=True)], columns=2),
        _section("Loss by quartile of t", quarters, columns=2, rows=2),
        _section("Quality", [_curve(f"val/{name}") for name in ("bits_per_dim", "fid", "kid")]),
        _section("Terms of the bound", [_curve(f"val/bits_{name}") for name in ("prior", "diffusion", "decoder")]),
        _section("Samples", [_media("grid"), _media("raw_grid"), _media("scatter")]),
        _section("From noise to image", [_media("trajectory"), _media("trajectory_animation")], columns=2),
        _section("Nearest training images", [_media("neighbors")], columns=1),
        _section("Noise-prediction error vs. log SNR", [_media("log_snr"), *levels], rows=2),
        _section("Forward process", [_media("schedule"), _media("forward_strip")], columns=2),
        _section("Optimizer", [_curve(f"train/{name}") for name in ("grad_norm", "lr", "ema_decay", "loss_spikes")]),
        _section("Speed", [_curve(f"train/{name}") for name in _SPEED], columns=2),
        _section(
            "Report of a sweep",
            [
                wr.WeavePanelSummaryTable(table_name="report/results"),
                *(
                    wr.MediaBrowser(media_keys=[f"report/{name}"])
                    for name in ("samples", "curves", "noise_prediction_error_vs_log_snr")
                ),
            ],
            columns=2,
            rows=2,
        ),
    ]


def _section(name: str, panels: list[Any], *, columns: int = 3, rows: int = 1) -> ws.Section:
    return ws.Section(
        name=name,
        panels=panels,
        is_open=True,
        layout_settings=ws.SectionLayoutSettings(columns=columns, rows=rows),
        panel_settings=ws.SectionPanelSettings(x_axis=_STEP),
    )


def _curve(key: str, *, title: str | None = None, log_y: bool = False) -> Any:
    return wr.LinePlot(title=title or key, x=_STEP, y=[key], log_y=log_y or None)


def _media(name: str) -> Any:
    return wr.MediaBrowser(title=f"samples/{name}", media_keys=[f"samples/{name}"])


def _columns(keys: Sequence[str]) -> list[str]:
    """The columns of the runs table: group, distinguishing settings, and metrics."""
    config = [re.sub(r"^[^.]+", r"\g<0>.value", key) for key in (*keys, "seed")]  # W&B's format of config keys
    return [
        *("run:group", "run:state", "tags:__ALL__"),
        *(f"config:{key}" for key in config),
        *(f"summary:val/{name}.min" for name in ("bits_per_dim", "fid", "kid", "loss")),
    ]


def _sentence(error: Exception, project: str, entity: str | None) -> str:
    said = brief(error)
    if "No API key" in said or "No authentication" in said:
        return "W&B has no API key: `wandb login`, or set WANDB_API_KEY"
    where = f"--project {project}" + (f" of --entity {entity}" if entity else "")
    return (
        f"W&B did not save the dashboard of {where} ({said}): check the network and WANDB_API_KEY, and that the project has a "
        "run and the key may write to it"
    )
