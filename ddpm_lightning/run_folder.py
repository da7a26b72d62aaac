"""The folder of a run or sweep: its records, its lock, and its cleanup."""

import atexit
import json
import os
import re
import shutil
from collections.abc import Iterator, Sequence, Set
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from ddpm_lightning.errors import UserError
from ddpm_lightning.files import check_zip, replace_file, try_lock

__all__ = [
    "FAILED_JOBS",
    "SWEEP",
    "by_step",
    "checkpoints_in",
    "configs_below",
    "failed_jobs_in",
    "has_finished",
    "hold",
    "is_going_on",
    "newest_intact",
    "only_one_run",
    "refuse_pipes",
    "refuse_used",
    "release",
    "remove_leftovers",
    "remove_unbegun",
    "runs_within",
    "summary_of",
    "unfinished_runs",
    "write_summary",
]

SWEEP = "multirun.yaml"  # the sweep's config, in its folder
FAILED_JOBS = "failed_jobs"  # in the sweep's folder, one file per failed job

_LOCK = ".lock"
_JSON = 2**20  # maximum bytes
_LEFTOVER = re.compile(  # temporary names of our own files in `replace_file`
    r"\.((step_\d+|last|best|ema_[\d.]+(_step_\d+)?)\.ckpt|config\.yaml|overrides\.yaml|(summary|evaluation\w*)\.json|metrics\.csv|[a-z_\d]+\.(png|gif|html)|"
    r"\d+-\d+\.npz)\.\d+",
    re.ASCII,
)


@dataclass
class _Hold:
    """A folder locked by this process."""

    lock: int  # the descriptor of its lock file
    made: Sequence[Path]  # the folders created for it, innermost first
    there: Set[str]  # its previous contents
    is_used: bool = False  # a run uses it


_held: dict[Path, _Hold] = {}  # by real path


@atexit.register
def _release_all() -> None:
    for folder in [*_held]:
        release(folder)


def by_step(folder: Path, name: str, suffix: str) -> list[Path]:
    """A folder's files `<name>_<step><suffix>`, sorted numerically by step."""
    found = {path: path.name.removeprefix(f"{name}_").removesuffix(suffix) for path in folder.glob(f"{name}_*{suffix}")}
    return sorted((path for path, step in found.items() if step.isdecimal()), key=lambda path: int(found[path]))


def checkpoints_in(saved: Path) -> list[Path]:
    """The checkpoints in a folder, newest first by the step in their names, followed by `last.ckpt`."""
    return [*reversed(by_step(saved, "step", ".ckpt")), *saved.glob("last.ckpt")]


def newest_intact(saved: Path) -> Path | None:
    """The newest checkpoint in a folder with valid checksums; None if there is none."""
    for path in checkpoints_in(saved):
        with suppress(OSError, ValueError):
            check_zip(path)
            return path
    return None


def refuse_pipes(folder: Path, *, and_links_out: bool = False) -> None:
    """Refuse a folder that contains anything but files, folders and links at any depth: reading a pipe would block.

    Args:
        folder: the folder.
        and_links_out: also refuse links that lead out of the folder, through which files elsewhere would be changed.

    Raises:
        UserError: naming the refused path.
    """
    inside = folder.resolve()
    for at, folders, files in os.walk(folder):
        for path in [Path(at) / name for name in (*folders, *files)]:
            target, odd = Path(os.path.realpath(path)), ""
            if os.path.lexists(target) and not (target.is_file() or target.is_dir()):
                odd = "neither a file nor a folder"
            elif and_links_out and path.is_symlink() and not target.is_relative_to(inside):
                odd = f"a link to {target}, outside of {folder}"
            if odd:
                raise UserError(f"{path} is {odd}: remove it, or put a copy in its place")
        # W&B's run folders link to its log files, and are never reused.
        is_logged = "config.yaml" in files or Path(at).name == "report"
        folders[:] = [name for name in folders if name != "wandb" or not is_logged]


def refuse_used(folder: Path) -> None:
    """Refuse a folder that already holds a run.

    Raises:
        UserError: if it holds a config.
    """
    if (folder / "config.yaml").exists():
        raise UserError(
            f"hydra.run.dir={folder} already holds a run: resume it with resume={folder}, or choose another folder"
        )


def summary_of(folder: Path) -> dict[str, Any]:
    """The run's summary; empty if missing or its checksum is wrong."""
    found = _read_json(folder / "summary.json")
    return found if found.pop("sha256", None) in (None, _digest(found)) else {}


def write_summary(folder: Path, summary: dict[str, Any]) -> None:
    """Write the run's summary with a checksum."""
    with replace_file(folder / "summary.json") as file:
        file.write(json.dumps({**summary, "sha256": _digest(summary)}, indent=2) + "\n")


def _digest(summary: dict[str, Any]) -> str:
    return sha256(json.dumps(summary, sort_keys=True).encode()).hexdigest()


def has_finished(folder: Path) -> bool:
    """Whether the run's summary says that it has finished."""
    return summary_of(folder).get("status") == "finished"


def failed_jobs_in(folder: Path) -> dict[float, dict[str, str]]:
    """The "overrides" and "why" of a sweep's failed jobs, by job number."""
    notes = {path.stem: _read_json(path) for path in (folder / FAILED_JOBS).glob("*.json")}
    return {
        int(number): {key: str(notes[number].get(key, "")) for key in ("overrides", "why")}
        for number in sorted(filter(str.isdecimal, notes), key=int)
        if notes[number]
    }


def _read_json(path: Path) -> dict[str, Any]:
    """The mapping in a JSON file; empty if it holds none or cannot be read."""
    with suppress(OSError, ValueError, RecursionError):
        if path.is_file() and path.stat().st_size <= _JSON:
            found = json.loads(path.read_text(encoding="utf-8"))
            return found if isinstance(found, dict) else {}
    return {}


def configs_below(folder: Path) -> list[Path]:
    """The resolved configs of the runs at and below a folder."""
    return [p for p in folder.glob("**/config.yaml") if p.parent.name != ".hydra" and "wandb" not in p.parts]


def runs_within(folder: Path) -> list[Path]:
    """The runs with checkpoints in a folder of runs, or of days with runs; newest first."""
    found = [path for pattern in ("*", "*/*") for path in folder.glob(f"{pattern}/checkpoints/last.ckpt")]
    return [path.parent.parent for path in sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)]


def unfinished_runs(*roots: str) -> list[Path]:
    """The folders below the roots with an unfinished run that is not running; newest first."""
    configs = [path for root in roots for path in configs_below(Path(root))]
    configs.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    return [c.parent for c in configs if not has_finished(c.parent) and not is_going_on(c.parent)]


def is_going_on(folder: Path) -> bool:
    """Whether a process is training in this folder."""
    with suppress(OSError):
        if (folder / _LOCK).is_file():
            lock = try_lock(folder / _LOCK, create=False)
            if lock is None:
                return True
            os.close(lock)
    return False


@contextmanager
def only_one_run(folder: Path) -> Iterator[None]:
    """Lock the folder for one run of this process.

    Raises:
        UserError: if another run has locked it.
    """
    is_new = hold(folder)
    held = _held[folder.resolve()]
    if held.is_used:
        raise _is_held(folder)
    held.is_used = True
    try:
        yield
    finally:
        held.is_used = False
        if is_new:
            release(folder)


def hold(folder: Path) -> bool:
    """Lock the folder for this process until it exits or calls `release`; False if it has locked it already.

    Raises:
        UserError: if another process has locked it.
    """
    if (key := folder.resolve()) in _held:
        return False
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    there = {path.name for path in folder.iterdir()}
    if (lock := try_lock(folder / _LOCK)) is None:
        raise _is_held(folder)
    _held[key] = _Hold(lock, made, there)
    return True


def _is_held(folder: Path) -> UserError:
    return UserError(f"{folder} is used by another run: wait until it ends, or choose another folder")


def release(folder: Path) -> None:
    """Unlock a folder, if locked by this process, and remove the empty folders created for it."""
    if (held := _held.pop(folder.resolve(), None)) is None:
        return
    with suppress(PermissionError):  # Windows cannot remove an open file
        (folder / _LOCK).unlink(missing_ok=True)
    os.close(held.lock)
    with suppress(OSError):
        for path in held.made:
            path.rmdir()


def remove_unbegun(folder: Path, *records: str, job: bool = False) -> None:
    """Remove the records of a refused run or sweep written by this process, and folders left empty.

    Removes nothing that existed before, and nothing from a folder that this process has not locked or that has other files.

    Args:
        folder: the run's or sweep's folder.
        records: the names of its records.
        job: whether the folder belongs to a job of a locked sweep; then the first record must exist.
    """
    held = _held.get(folder.resolve())
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    mine = held is not None or (job and records[0] in names)
    if not mine or not names <= {*records, _LOCK}:
        return
    for path in [folder / name for name in records if held is None or name not in held.there]:
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
    release(folder)
    if held is None:
        with suppress(OSError):
            folder.rmdir()


def remove_leftovers(folder: Path) -> None:
    """Remove incomplete files of a killed process."""
    for below in (folder, folder / "checkpoints", folder / "ema", folder / "samples"):
        for path in below.glob(".*"):
            if _LEFTOVER.fullmatch(path.name) and path.is_file():
                path.unlink(missing_ok=True)
