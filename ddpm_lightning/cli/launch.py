"""How this process was started: alone, by Lightning, by torchrun or SLURM, for a sweep or as one of its jobs."""

import ctypes
import os
import signal
import sys
from collections.abc import Callable, Sequence
from datetime import datetime

from ddpm_lightning import environment
from ddpm_lightning.cli.typed import FLAGS
from ddpm_lightning.errors import UserError

__all__ = [
    "agreed",
    "check_sweep_allowed",
    "end_with_parent",
    "is_sweep",
    "precision",
    "run_name",
    "split_flags",
    "value_of",
]

_SWEEPS = {  # those of conf/sweep, and their program
    "samplers": "evaluate",
    "schedules": "train",
    "predictions": "train",
    "processes": "train",
    "optuna": "train",
}


def run_name() -> str:
    """The run folder's name below outputs/, the same for all processes of a run: a day and a time, or SLURM's job number."""
    if environment.started_by_torchrun():
        return agreed("run_name", _now)
    return _now() if environment.srun_tasks() == 1 else f"slurm_{os.environ['SLURM_JOB_ID']}"


def is_sweep(argv: Sequence[str]) -> bool:
    """Whether a command line starts a sweep: by its flag, or by one of the sweeps in conf/sweep."""
    if "hydra.mode=RUN" in argv:  # one of a sweep's jobs, in processes of its own
        return False
    return bool({"-m", "--multirun", "hydra.mode=MULTIRUN"} & {*argv}) or _preset(argv) not in ("null", "")


def check_sweep_allowed(argv: Sequence[str]) -> None:
    """Refuse a sweep that each of several processes would start, and one for another program.

    Raises:
        UserError: that says what to type instead.
    """
    preset, program = _preset(argv), environment.current().program
    if is_sweep(argv) and (environment.started_by_torchrun() or environment.srun_tasks() > 1):
        raise UserError(
            "-m: a sweep starts its jobs' processes itself, so start it without torchrun or srun, "
            f"as in `{environment.command('train')} -m seed=0,1 trainer=ddp trainer.devices=2`"
        )
    right = _SWEEPS.get(preset)
    if right and program in {"train", "evaluate"} - {right}:
        raise UserError(f"sweep={preset} belongs to another program: run `{environment.command(right)} sweep={preset}`")


def end_with_parent() -> None:
    """On Linux, end with the process that started this one: a rank of Lightning's at once, a sweep's job after it has saved."""
    launch, is_rank = environment.current(), environment.started_by_lightning()
    if not is_rank:
        environment.update(main_process=os.getpid())
    if sys.platform != "linux" or not (is_rank or launch.error_file):
        return
    ctypes.CDLL(None).prctl(1, signal.SIGKILL if is_rank else signal.SIGTERM)  # PR_SET_PDEATHSIG
    if is_rank and os.getppid() != launch.main_process:  # it ended before that
        sys.exit(1)


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
        store.compare_set(key, "", value())  # the first value stays, however often it is asked for
    return store.get(key).decode()


def split_flags(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """A command line's flags, each followed by its value where it has one of its own, and the overrides."""
    flags: list[str] = []
    overrides: list[str] = []
    left = iter(argv)
    for argument in left:
        (flags if argument.startswith("-") else overrides).append(argument)
        if argument in FLAGS and FLAGS[argument].nargs is None:
            flags += [value for value in [next(left, None)] if value is not None]
    return flags, overrides


def value_of(key: str, argv: Sequence[str]) -> str | None:
    """What a command line gives a key, the last time where it does so more than once."""
    values = [argument.removeprefix(f"{key}=") for argument in argv if argument.startswith(f"{key}=")]
    return values[-1].strip("'\"").replace(r"\'", "'") if values else None


def _preset(argv: Sequence[str]) -> str:
    return value_of("sweep", [argument.lstrip("+") for argument in argv]) or ""


def _now() -> str:
    return f"{datetime.now():%Y-%m-%d/%H-%M-%S-%f}"


def precision(accelerator: str) -> str:
    """What `trainer.precision` is by default: bf16-mixed on a GPU that computes in bfloat16, else 32-true."""
    import torch

    on_gpu = accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    return "bf16-mixed" if on_gpu and torch.cuda.is_bf16_supported() else "32-true"
