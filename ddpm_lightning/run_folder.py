"""What a run folder says of its run: whether it has ended, whether it is going on, and what can be read of it."""

import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from ddpm_lightning.errors import UserError

__all__ = [
    "FAILED_JOBS",
    "SWEEP",
    "checkpoints_of",
    "configs_below",
    "failed_jobs_in",
    "has_finished",
    "is_going_on",
    "only_one_run",
    "refuse_used",
    "remove_leftovers",
    "remove_unbegun",
    "replace_file",
    "summary_of",
    "unfinished_runs",
]

SWEEP = "multirun.yaml"  # in a sweep's folder: its config
FAILED_JOBS = "failed_jobs"  # in a sweep's folder: a file for each job that failed

_LOCK = ".lock"


def checkpoints_of(folder: Path) -> list[Path]:
    """The run's checkpoints, newest first: by the step in their names, and `last.ckpt` behind them."""
    saved = folder / "checkpoints"
    return [*sorted(saved.glob("step_*.ckpt"), reverse=True), *saved.glob("last.ckpt")]


def refuse_used(folder: Path, sign: str) -> None:
    """Refuse a folder for a new run in which a file is the sign of an earlier one.

    Raises:
        UserError: where it is there.
    """
    if (folder / sign).exists():
        raise UserError(
            f"hydra.run.dir={folder} holds a run already: go on with it by resume={folder}, or choose another folder"
        )


def summary_of(folder: Path) -> dict[str, Any]:
    """What the run's summary says, nothing of a run that has none, or a broken one."""
    try:
        found = json.loads((folder / "summary.json").read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def has_finished(folder: Path) -> bool:
    """Whether the run's summary says so."""
    return summary_of(folder).get("status") == "finished"


def failed_jobs_in(folder: Path) -> dict[float, dict[str, str]]:
    """What a sweep's failed jobs left in its folder, by their numbers: "overrides" and "why"."""
    found: dict[float, dict[str, str]] = {}
    for path in (folder / FAILED_JOBS).glob("[0-9]*.json"):
        with suppress(OSError, ValueError):
            found[int(path.stem)] = json.loads(path.read_text())
    return dict(sorted(found.items()))


def configs_below(folder: Path) -> list[Path]:
    """The resolved configs of the runs at and below a folder."""
    return [p for p in folder.glob("**/config.yaml") if p.parent.name != ".hydra" and "wandb" not in p.parts]


def unfinished_runs(*roots: str) -> list[Path]:
    """The run folders below the roots whose run has begun, and neither finished nor is going on; newest first."""
    configs = [path for root in roots for path in configs_below(Path(root))]
    configs.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    return [c.parent for c in configs if not has_finished(c.parent) and not is_going_on(c.parent)]


def is_going_on(folder: Path) -> bool:
    """Whether a process trains in this folder."""
    try:
        with (folder / _LOCK).open() as file:
            return not _try_to_lock(file)
    except OSError:
        return False


@contextmanager
def only_one_run(folder: Path) -> Iterator[None]:
    """Hold the folder for this process; the system lets go of it when the process ends, in whatever way.

    Raises:
        UserError: where another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / _LOCK).open("w") as file:
        if not _try_to_lock(file):
            raise UserError(
                f"{folder}: another run is going on in this folder; wait for its end, or choose another folder"
            )
        try:
            yield
        finally:
            (folder / _LOCK).unlink(missing_ok=True)


@contextmanager
def replace_file(path: Path, mode: str = "w") -> Iterator[IO[Any]]:
    """A file to write to that takes the place of `path` when it is complete and on the disk; on an error nothing is left of it."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with beside.open(mode) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def remove_unbegun(folder: Path, record: str, *others: str) -> None:
    """Remove a folder that holds Hydra's record and at most the others: what was to lie there was refused before it began.

    In the default layout its day's folder and outputs/ or multirun/ go, too, where these are empty then.
    """
    if not (folder / record).exists() or not {path.name for path in folder.iterdir()} <= {record, *others, _LOCK}:
        return
    shutil.rmtree(folder)
    if folder.absolute().parent.parent.parent == Path.cwd():
        with suppress(OSError):
            folder.parent.rmdir()
            folder.parent.parent.rmdir()


def remove_leftovers(folder: Path) -> None:
    """Remove what a killed process had not finished writing."""
    for path in [*folder.glob(".*.[0-9]*"), *(folder / "checkpoints").glob(".*.[0-9]*")]:
        path.unlink(missing_ok=True)


def _try_to_lock(file: IO[str]) -> bool:
    for wait in (0.3, 0):  # another process may just be looking whether the run goes on
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(wait)
        except OSError:
            return True  # a file system without locks
        else:
            # Its last holder may have removed the file since it was opened, and someone else made a new one.
            return os.path.exists(file.name) and os.fstat(file.fileno()).st_ino == os.stat(file.name).st_ino
    return False
