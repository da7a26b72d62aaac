"""What jobs a sweep has: in which keys they differ, how many they are, and whether its launcher and sweeper can work so."""

import math
import os
from collections.abc import Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import RangeSweep

from ddpm_lightning.environment import JOBS
from ddpm_lightning.errors import UserError
from ddpm_lightning.records import length

__all__ = ["announce_jobs", "check_sweep", "planned", "swept"]

_JOBS = 100_000  # of a range
_SWEPT = "DDPM_SWEPT"  # the keys in which the jobs differ


def planned(hydra: Any) -> tuple[list[str], int]:
    """The keys in which a sweep's jobs differ, and how many jobs there are, as its `hydra` node says.

    Raises:
        HydraException: for overrides that cannot be read.
        UserError: for a range that has no values, or has all in between where a list is wanted, and for too many jobs.
    """
    chosen = [f"{key}={value}" for key, value in (hydra["sweeper"].get("params") or {}).items()]
    parsed = OverridesParser.create().parse_overrides([*chosen, *hydra["overrides"]["task"]])
    last = {override.get_key_element(): override for override in parsed}
    sweeps = {key.lstrip("+~"): override for key, override in last.items() if override.is_sweep_override()}
    searched = "n_trials" in hydra["sweeper"]
    for override in sweeps.values():
        _check_range(override, searched)
    if searched:
        return [*sweeps], hydra["sweeper"]["n_trials"]
    jobs = math.prod(len([*override.sweep_string_iterator()]) for override in sweeps.values())
    if jobs > _JOBS:
        raise UserError(f"the sweep has {jobs:,} jobs, more than {_JOBS:,}: give fewer values")
    return [*sweeps], jobs


def check_sweep(hydra: Any) -> None:
    """Refuse numbers that a sweep's launcher and sweeper, as its `hydra` node names them, would come to grief over.

    Raises:
        UserError: that names the key, its value and the way out.
    """
    for part, key in (("sweeper", "n_trials"), ("sweeper", "n_jobs"), ("launcher", "n_jobs")):
        value, endless = hydra[part].get(key, 1), part == "launcher"
        if value < 1 and not (endless and value == -1):
            more = ", or -1 for as many as there are cores" * endless
            raise UserError(f"hydra.{part}.{key}={value} will not do: give a whole number, 1 or more{more}")
        if key == "n_jobs" and value > max(64, 4 * (os.cpu_count() or 1)):
            raise UserError(f"hydra.{part}.{key}={value} is more than this machine can run at once: give fewer")
    direction = hydra.sweeper.get("direction", "minimize")
    if getattr(direction, "name", direction) not in ("minimize", "maximize"):
        raise UserError(
            f"hydra.sweeper.direction={direction} will not do: choose minimize, since all metrics are less where better"
        )


def announce_jobs(config: Any) -> None:
    """Let a sweep's jobs know in what they differ and how many they are, wherever its launcher runs them.

    Raises:
        HydraException, UserError: see `planned`.
    """
    keys, jobs = planned(config.hydra)
    os.environ[_SWEPT], os.environ[JOBS] = ",".join(keys), str(jobs)


def swept(overrides: Sequence[str]) -> list[str]:
    """A job's overrides that the other jobs of its sweep do not share; all of them where none is known to differ."""
    keys = os.environ.get(_SWEPT, "").split(",")
    return [text for text in overrides if text.lstrip("+~").partition("=")[0] in keys] or [*overrides]


def _check_range(override: Any, searched: bool) -> None:
    if isinstance(values := override.value(), RangeSweep) and length(values) > _JOBS:
        raise UserError(f"{override.input_line} gives more than {_JOBS:,} jobs: give a larger step, or an earlier end")
    if not override.is_interval_sweep():
        return
    interval, text = override.value(), override.input_line
    if not searched:
        raise UserError(f"{text} is a search, and wants sweep=optuna; or give a list of values, as in 1,2,3")
    if not interval.start < interval.end or ("log" in interval.tags and interval.start <= 0):
        raise UserError(
            f"{text} will not do: give two numbers, the lower one first, and above 0 where it is tagged log"
        )
