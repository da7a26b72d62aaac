"""Processes that torchrun or SLURM started find one name for their run."""

import os
import sys
from collections.abc import Callable, Sequence
from datetime import datetime

from ddpm_lightning.errors import UserError

__all__ = ["agreed", "is_sweep", "name_run", "run_name", "srun_tasks"]

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
    """Whether a command line starts a sweep."""
    return bool({"-m", "--multirun"} & {*argv})


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


def _now() -> str:
    return f"{datetime.now():%Y-%m-%d/%H-%M-%S-%f}"
