"""Environment variables set by the user, torchrun and SLURM, and by a process for its children.

The package's own variables are read only here.
"""

import json
import os
import shlex
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from ddpm_lightning.errors import UserError

__all__ = [
    "Launch",
    "allows_pipes",
    "cache_folder",
    "command",
    "current",
    "for_a_job",
    "is_first",
    "is_first_on_node",
    "shows_traceback",
    "srun_tasks",
    "started_by_lightning",
    "started_by_torchrun",
    "theme",
    "trust_argument",
    "trusted",
    "update",
]

_LAUNCH = "DDPM_LAUNCH"
_RANKS = ("LOCAL_RANK", "GLOBAL_RANK", "NODE_RANK", "RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_", "PL_")
_TASKS = ("SLURM_NTASKS", "SLURM_STEP_", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID")


@dataclass(frozen=True)
class Launch:
    """How a process was started; child processes inherit this record.

    Args:
        script: the script that the user started, such as train.py, or ddpm-train of an installed package.
        program: train, sample or evaluate; empty for a command of `ddpm`.
        trust: the packages that a checkpoint's config may name, as typed by the user.
        main_process: the ID of the process from which Lightning starts the other ranks; 0 for none.
        num_jobs: the number of jobs in the current sweep; 0 if unknown.
        swept: the keys in which the jobs differ.
        job: the current job of the sweep, such as "job 2 of 3".
        error_file: the file for the error message of a sweep's job in a separate process.
        job_parent: the ID of the process that started that job.
    """

    script: str = ""
    program: str = ""
    trust: list[str] = field(default_factory=list)
    main_process: int = 0
    num_jobs: int = 0
    swept: list[str] = field(default_factory=list)
    job: str = ""
    error_file: str = ""
    job_parent: int = 0


def current() -> Launch:
    """This process's record; the error file belongs to a single job and is hidden from its children."""
    told = json.loads(os.environ.get(_LAUNCH, "{}"))  # may be from another version, if a job has waited in a queue
    launch = Launch(**{one.name: told[one.name] for one in fields(Launch) if one.name in told})
    return launch if launch.job_parent == os.getppid() else replace(launch, error_file="")


def update(**changes: Any) -> None:
    """Change fields of this process's record, and of future child processes."""
    os.environ[_LAUNCH] = json.dumps(asdict(replace(current(), **changes)))


def command(program: str) -> str:
    """The command that starts a program the way the user started this one: `python train.py`, or `ddpm-train` if installed.

    Args:
        program: train, sample, evaluate, or another command of `ddpm`.
    """
    script = Path(current().script)
    is_repository = bool(current().program) and script.name == f"{current().program}.py"
    if script.parent.name in ("cli", "ddpm_lightning"):
        return f"python -m ddpm_lightning {program}"
    if program not in ("train", "sample", "evaluate"):
        return f"{'python -m ddpm_lightning' if is_repository else 'ddpm'} {program}"
    if script.stem == "ddpm":
        return f"ddpm {program}"
    return f"python {program}.py" if is_repository else f"ddpm-{program}"


def for_a_job(error_file: Path) -> dict[str, str]:
    """The environment of a new process for this sweep's job, without ranks or the launcher's own SLURM task."""
    now = current()
    launch = Launch(script=now.script, trust=now.trust, job=now.job, error_file=str(error_file), job_parent=os.getpid())
    kept = {key: value for key, value in os.environ.items() if not key.startswith((*_RANKS, *_TASKS))}
    return {**kept, _LAUNCH: json.dumps(asdict(launch))}


def started_by_torchrun() -> bool:
    return "TORCHELASTIC_RUN_ID" in os.environ


def started_by_lightning() -> bool:
    """Whether Lightning started this process as an additional rank of the main process's run."""
    main = current().main_process
    return main not in (0, os.getpid()) and not is_first_on_node() and not started_by_torchrun()


def srun_tasks() -> int:
    """The number of processes started by srun; a batch script has SLURM's other variables but is one process."""
    return int(os.environ.get("SLURM_STEP_NUM_TASKS", "1"))


def is_first_on_node() -> bool:
    return os.environ.get("LOCAL_RANK", "0") == "0"


def is_first() -> bool:
    """Whether this is the first process of its run."""
    return all(os.environ.get(key, "0") == "0" for key in ("RANK", "SLURM_PROCID", "NODE_RANK", "LOCAL_RANK"))


def shows_traceback() -> bool:
    """Whether errors are shown with a traceback instead of one sentence."""
    return "DDPM_TRACEBACK" in os.environ


def theme() -> str:
    """The theme of figures: $DDPM_THEME, "light" or "dark"; light if it is not set.

    Raises:
        UserError: for another theme.
    """
    chosen = os.environ.get("DDPM_THEME") or "light"
    if chosen not in ("light", "dark"):
        raise UserError(f"DDPM_THEME must be light or dark, got {chosen!r}")
    return chosen


def cache_folder() -> Path:
    """The cache folder: $DDPM_CACHE, or ~/.cache/ddpm_lightning."""
    return Path(os.environ.get("DDPM_CACHE") or Path.home() / ".cache" / "ddpm_lightning")


def trusted() -> list[str]:
    """The packages that the user trusts, from trust=[...] on the command line and DDPM_TRUST=mylab,other."""
    return [*current().trust, *os.environ.get("DDPM_TRUST", "").replace(",", " ").split()]


def trust_argument(packages: Iterable[str]) -> str:
    """The command-line argument that trusts these packages, quoted for a shell; empty for none."""
    names = ",".join(packages)
    return shlex.quote(f"trust=[{names}]") if names else ""


def allows_pipes() -> bool:
    """Whether a checkpoint's config may run commands (pipe:...) to read its data."""
    return bool(os.environ.get("DDPM_ALLOW_PIPE"))
