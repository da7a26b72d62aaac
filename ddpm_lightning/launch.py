"""Processes that torchrun or SLURM started find one name for their run."""

import os
from collections.abc import Callable
from datetime import datetime

__all__ = ["agreed", "name_run", "run_name"]

_NAME = "DDPM_RUN_NAME"


def run_name() -> str:
    """The run folder's name below outputs/: the day and the time at which the first of its processes started."""
    return os.environ.get(_NAME) or _now()


def name_run() -> None:
    """Where another program started several processes, let them have one run's name; Hydra would give each one of its own."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        os.environ[_NAME] = agreed("run_name", _now)
    elif os.environ.get("SLURM_NTASKS", "1") != "1" and "SLURM_PROCID" in os.environ:
        os.environ[_NAME] = f"slurm_{os.environ['SLURM_JOB_ID']}"


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
