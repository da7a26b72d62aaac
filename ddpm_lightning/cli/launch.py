"""How this process was started: by torchrun or SLURM, whose processes find one name for their run, for a sweep, or as one of its jobs."""

import os
import sys
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path

from ddpm_lightning.errors import UserError

__all__ = [
    "agreed",
    "check_preset",
    "is_first",
    "is_sweep",
    "name_run",
    "run_name",
    "srun_tasks",
]

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


def is_first() -> bool:
    """Whether this is the first process of its run; the others may find what the first one has written."""
    return all(os.environ.get(key, "0") == "0" for key in ("RANK", "SLURM_PROCID", "NODE_RANK", "LOCAL_RANK"))


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


def _preset(argv: Sequence[str]) -> str:
    chosen = [
        text.removeprefix("sweep=") for text in (argument.lstrip("+") for argument in argv) if text[:6] == "sweep="
    ]
    return chosen[-1] if chosen else ""


def _now() -> str:
    return f"{datetime.now():%Y-%m-%d/%H-%M-%S-%f}"
