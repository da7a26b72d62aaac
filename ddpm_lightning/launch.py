"""How a run was started: by torchrun or SLURM, whose processes find one name for it, or as one of a sweep's jobs."""

import math
import os
import sys
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser

from ddpm_lightning.errors import UserError

__all__ = [
    "JOB",
    "JOBS",
    "SCRIPT",
    "TELL",
    "agreed",
    "announce_jobs",
    "check_preset",
    "check_sweep",
    "is_sweep",
    "name_run",
    "planned",
    "quoted",
    "run_name",
    "srun_tasks",
    "swept",
]

JOB = "DDPM_JOB"  # which of a sweep's jobs this process is, for people
JOBS = "DDPM_JOBS"  # how many there are
SCRIPT = "DDPM_SCRIPT"  # the entry point that the user started
TELL = "DDPM_TELL_SWEEP"  # the file in which a job with processes of its own leaves its error's sentence
_SWEPT = "DDPM_SWEPT"  # the keys in which they differ

_NAME = "DDPM_RUN_NAME"


def run_name() -> str:
    """The run folder's name below outputs/: the day and the time at which the first of its processes started."""
    return os.environ.get(_NAME) or _now()


def name_run() -> None:
    """Where another program started several processes, let them have one run's name; Hydra would give each one of its own.

    Raises:
        UserError: for a sweep, which each of them would start.
    """
    by_torchrun = "TORCHELASTIC_RUN_ID" in os.environ
    if not by_torchrun and srun_tasks() == 1:
        return
    if is_sweep(sys.argv[1:]):
        raise UserError(
            "-m: a sweep starts its jobs' processes itself, so start it without torchrun or srun, "
            "as in `python train.py -m seed=0,1 trainer=ddp trainer.devices=2`"
        )
    os.environ[_NAME] = agreed("run_name", _now) if by_torchrun else f"slurm_{os.environ['SLURM_JOB_ID']}"


def is_sweep(argv: Sequence[str]) -> bool:
    """Whether a command line starts a sweep: by its flag, or by one of the sweeps in conf/sweep."""
    if "hydra.mode=RUN" in argv:  # one of a sweep's jobs, in processes of its own
        return False
    return bool({"-m", "--multirun", "hydra.mode=MULTIRUN"} & {*argv}) or _preset(argv) not in ("null", "")


def check_preset(argv: Sequence[str]) -> None:
    """Refuse the sweep of samplers where a model would be trained for each, and the others where nothing is trained.

    Raises:
        UserError: that names the script which it is for.
    """
    preset, script = _preset(argv), Path(argv[0]).stem
    if preset == "samplers" and script == "train":
        raise UserError("sweep=samplers trains nothing, and is for evaluate.py: python evaluate.py sweep=samplers")
    if preset in ("schedules", "predictions", "optuna") and script == "evaluate":
        raise UserError(f"sweep={preset} trains models, and is for train.py: python train.py sweep={preset}")


def quoted(value: Any) -> str:
    """A text as Hydra reads it back, whatever is in it."""
    return "'" + str(value).replace("'", r"\'") + "'"


def planned(hydra: Any) -> tuple[list[str], int]:
    """The keys in which a sweep's jobs differ, and how many jobs there are, as its `hydra` node says.

    Raises:
        HydraException: for overrides that cannot be read.
        UserError: for a range that has no values, or has all in between where a list is wanted.
    """
    chosen = [f"{key}={value}" for key, value in (hydra.sweeper.get("params") or {}).items()]
    parsed = OverridesParser.create().parse_overrides([*chosen, *hydra.overrides.task])
    last = {override.get_key_element(): override for override in parsed}
    sweeps = {key.lstrip("+~"): override for key, override in last.items() if override.is_sweep_override()}
    searched = "n_trials" in hydra.sweeper
    for override in sweeps.values():
        _check_range(override, searched)
    if searched:
        return [*sweeps], hydra.sweeper.n_trials
    return [*sweeps], math.prod(len([*override.sweep_string_iterator()]) for override in sweeps.values())


def check_sweep(hydra: Any) -> None:
    """Refuse numbers that a sweep's launcher and sweeper, as its `hydra` node names them, would come to grief over.

    Raises:
        UserError: that names the key, its value and the way out.
    """
    planned(hydra)
    for part, key in (("sweeper", "n_trials"), ("sweeper", "n_jobs"), ("launcher", "n_jobs")):
        value, endless = hydra[part].get(key, 1), part == "launcher"
        if value < 1 and not (endless and value == -1):
            more = ", or -1 for as many as there are cores" * endless
            raise UserError(f"hydra.{part}.{key}={value} will not do: give a whole number, 1 or more{more}")
    direction = hydra.sweeper.get("direction", "minimize")
    if getattr(direction, "name", direction) not in ("minimize", "maximize"):
        raise UserError(
            f"hydra.sweeper.direction={direction} will not do: choose minimize, since all metrics are less where better"
        )


def announce_jobs(config: Any) -> None:
    """Let a sweep's jobs know in what they differ and how many they are, wherever its launcher runs them."""
    keys, jobs = planned(config.hydra)
    os.environ[_SWEPT], os.environ[JOBS] = ",".join(keys), str(jobs)


def swept(overrides: Sequence[str]) -> list[str]:
    """A job's overrides that the other jobs of its sweep do not share; all of them where none is known to differ."""
    keys = os.environ.get(_SWEPT, "").split(",")
    return [text for text in overrides if text.lstrip("+~").partition("=")[0] in keys] or [*overrides]


def srun_tasks() -> int:
    """How many processes srun started with this one; a batch script bears SLURM's other numbers, but is a process alone."""
    return int(os.environ.get("SLURM_STEP_NUM_TASKS", "1"))


def agreed(key: str, value: Callable[[], str]) -> str:
    """Rank zero's value, on all the processes that torchrun started; elsewhere simply the value.

    They speak through the store that torchrun keeps, which is there before any process group.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return value()
    from torch.distributed import TCPStore  # type: ignore[attr-defined]  # heavy, and only here

    store = TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)
    key = f"ddpm_lightning/{key}/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
    if os.environ["RANK"] == "0":
        store.set(key, value())
    return store.get(key).decode()


def _check_range(override: Any, searched: bool) -> None:
    if not override.is_interval_sweep():
        return
    interval, text = override.value(), override.input_line
    if not searched:
        raise UserError(f"{text} is a search, and wants sweep=optuna; or give a list of values, as in 1,2,3")
    if not interval.start < interval.end or ("log" in interval.tags and interval.start <= 0):
        raise UserError(
            f"{text} will not do: give two numbers, the lower one first, and above 0 where it is tagged log"
        )


def _preset(argv: Sequence[str]) -> str:
    chosen = [
        text.removeprefix("sweep=") for text in (argument.lstrip("+") for argument in argv) if text[:6] == "sweep="
    ]
    return chosen[-1] if chosen else ""


def _now() -> str:
    return f"{datetime.now():%Y-%m-%d/%H-%M-%S-%f}"
