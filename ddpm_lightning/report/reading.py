"""Read the runs of a sweep, and group them by settings."""

import csv
import json
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ddpm_lightning.errors import UserError
from ddpm_lightning.ranges import within
from ddpm_lightning.records.yaml import read_record
from ddpm_lightning.report.comparison import Mean
from ddpm_lightning.run_folder import configs_below, is_going_on, refuse_pipes, summary_of

__all__ = ["Run", "Setting", "flat", "job_number", "part", "read_runs", "settings_of"]

_NOISE = ("run_dir", "resume", "logger", "sweep", "optimized_metric")


@dataclass(frozen=True)
class Run:
    """A run folder: its config as plain data, its overrides, its summary ({} if killed), and its status."""

    folder: Path
    config: Mapping[str, Any]
    overrides: Mapping[str, str]
    summary: Mapping[str, Any]
    status: str

    @property
    def seed(self) -> int:
        return self.config.get("seed", 0)

    def said(self, key: str) -> str:
        """A text of the summary, by dotted key, in one line; "" if it has none, as in runs of earlier versions."""
        found = part(self.summary, key)
        return " ".join(found.split())[:300] if isinstance(found, str) else ""

    @cached_property
    def compared(self) -> dict[str, Any]:
        """The config's values by dotted key, without seeds and paths."""
        here = str(self.config.get("run_dir"))
        return {
            key: value.replace(here, "") if isinstance(value, str) else value
            for key, value in flat(self.config).items()
            if not _is_noise(key)
        }

    @cached_property
    def metrics(self) -> dict[str, dict[int, tuple[float, float]]]:
        """(seconds since the start, value) by column of metrics.csv and step.

        Only training rows hold seconds; those of other rows are interpolated by step.
        """
        try:
            with (self.folder / "metrics.csv").open(newline="") as file:
                rows = [
                    {k: float(v) for k, v in row.items() if k and v} for row in csv.DictReader(file) if row.get("step")
                ]
        except (OSError, ValueError, TypeError, csv.Error):
            return {}
        rows = [row for row in rows if math.isfinite(row["step"])]
        clock = [(0.0, 0.0), *((r["step"], r["train/wall_seconds"]) for r in rows if "train/wall_seconds" in r)]
        seconds = np.interp([row["step"] for row in rows], *np.array(clock).T).tolist()
        found: dict[str, dict[int, tuple[float, float]]] = defaultdict(dict)
        for row, second in zip(rows, seconds, strict=True):
            for column, value in row.items():
                if math.isfinite(value):
                    found[column][int(row["step"])] = (second, value)
        return found


@dataclass(frozen=True)
class Setting:
    """Runs that differ only in the seed, and the values that distinguish them from other settings."""

    values: Mapping[str, str]
    runs: Sequence[Run]

    @property
    def name(self) -> str:
        return ", ".join(f"{key}={value}" for key, value in self.values.items()) or "this setting"

    @property
    def finished(self) -> list[Run]:
        return [run for run in self.runs if run.status == "finished"]

    @property
    def config(self) -> Mapping[str, Any]:
        """The first run's config."""
        return self.runs[0].config

    def mean(self, key: str) -> Mean | None:
        """The mean of a summary entry, by dotted key, see `mean_of`."""
        return self.mean_of(lambda run: part(run.summary, key))

    def mean_of(self, value_of: Callable[[Run], Any]) -> Mean | None:
        """The mean of a number over the finished runs that have it; of two runs with the same seed, the later one counts."""
        found = {run.seed: value_of(run) for run in self.finished}
        known = {seed: float(v) for seed, v in found.items() if within(v, "[-1e300, 1e300]")}
        return Mean(known) if known else None


def read_runs(*folders: Path) -> list[Run]:
    """Read the runs at and below the folders, ordered by name.

    Raises:
        UserError: if there are none in one of them.
    """
    found: dict[Path, Run] = {}
    for folder in folders:
        refuse_pipes(folder)
        runs = [run for path in configs_below(folder) if (run := _read(path.parent)) is not None]
        if not runs:
            raise UserError(
                f"the folder must contain runs of train.py, as a sweep's multirun/<day>/<time> does, got {folder}"
            )
        for run in sorted(runs, key=lambda run: (run.folder.parent, job_number(run.folder), run.folder.name)):
            found.setdefault(run.folder.resolve(), run)
    return [*found.values()]


def job_number(folder: Path) -> float:
    """The job number at the start of a job folder's name."""
    number = folder.name.partition("_")[0]
    return int(number) if number.isdecimal() else math.inf


def settings_of(runs: Sequence[Run]) -> list[Setting]:
    """Group runs by their configs without seeds and paths, and name the groups by their differing overrides."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(json.dumps(run.compared, sort_keys=True), []).append(run)
    firsts = [group[0] for group in groups.values()]
    typed = dict.fromkeys(key for run in firsts for key in run.overrides)
    keys = [k for k in typed if _differs([_typed(run, k) for run in firsts]) and _may_differ(firsts, k)]
    names = [tuple(_typed(run, key) for key in keys) for run in firsts]
    if len({*names}) < len(names):  # the overrides do not distinguish the groups
        every = dict.fromkeys(key for run in firsts for key in run.compared)
        differing = [key for key in every if _differs([run.compared.get(key) for run in firsts])]
        told = ("denoiser.", *(f"{key}." for key in keys))
        keys += [key for key in differing if key not in keys and not key.startswith(told)]
    return [
        Setting(
            {key: _typed(group[0], key) for key in keys}, sorted(group, key=lambda run: (run.seed, run.said("ended")))
        )
        for group in groups.values()
    ]


def part(config: Any, key: str) -> Any:
    """The part of a config at a dotted key, None if missing."""
    for name in key.split("."):
        config = config.get(name) if isinstance(config, Mapping) else None
    return config


def _read(folder: Path) -> Run | None:
    try:
        config = read_record(folder / "config.yaml")
    except UserError:  # not a run
        return None
    if not isinstance(config, dict) or "denoiser" not in config or not isinstance(config.get("seed", 0), int):
        return None
    is_running = is_going_on(folder)  # first, since a run that ends in between has a summary
    summary = summary_of(folder)
    status = str(summary.get("status") or ("running" if is_running else "killed"))
    typed = summary.get("overrides")
    if not typed:
        with suppress(UserError):
            typed = read_record(folder / ".hydra" / "overrides.yaml")
    split = [str(text)[:500].lstrip("+~").partition("=") for text in (typed if isinstance(typed, list) else [])]
    ours = {key: value.strip("'\"") for key, _, value in split if not key.startswith("hydra.") and not _is_noise(key)}
    return Run(folder, config, ours, summary, status)


def _is_noise(key: str) -> bool:
    """Whether a key is irrelevant to the comparison: seeds and paths."""
    return "seed" in key.split(".") or key.partition(".")[0] in _NOISE


def _typed(run: Run, key: str) -> str:
    """The override of a key, or else the config's value, with classes by name."""
    if key in run.overrides:
        return run.overrides[key]
    found = part(run.config, key.replace("/", "."))
    if isinstance(found, Mapping):
        return str(found.get("_target_", "default")).rpartition(".")[2]
    return "–" if found is None else str(found)


def _may_differ(runs: Sequence[Run], key: str) -> bool:
    """Whether a key's values may differ between runs, even if not in the config, such as `experiment`."""
    start = f"{key.replace('/', '.')}."
    found = [{k: v for k, v in run.compared.items() if f"{k}.".startswith(start)} for run in runs]
    return _differs(found) or not any(found)


def _differs(values: Sequence[Any]) -> bool:
    return any(value != values[0] for value in values)


def flat(config: Any, key: str = "") -> dict[str, Any]:
    """A config's values by dotted key."""
    if not isinstance(config, dict) or not config:
        return {key: config}
    below = [flat(child, f"{key}.{name}".lstrip(".")) for name, child in config.items()]
    return {key: value for part in below for key, value in part.items()}
