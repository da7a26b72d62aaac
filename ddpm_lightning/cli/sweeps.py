"""A sweep and its jobs: how many there are and in what they differ, how each one starts and ends, and which of them failed."""

import json
import math
import os
import shlex
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import RangeSweep
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ddpm_lightning.cli.launch import is_first
from ddpm_lightning.environment import JOB, JOBS, TELL
from ddpm_lightning.errors import Stopped, UserError
from ddpm_lightning.files import replace_file
from ddpm_lightning.records import length, recorded_sweep
from ddpm_lightning.run_folder import (
    FAILED_JOBS,
    SWEEP,
    failed_jobs_in,
    has_finished,
    hold,
    refuse_links_out,
    refuse_used,
    remove_unbegun,
)

__all__ = ["Jobs", "Report", "failed_jobs", "job", "planned", "remove_refused", "swept", "tell_sweep"]

_JOBS = 100_000  # of a range
_SWEPT = "DDPM_SWEPT"  # the keys in which the jobs differ

_sweep: list[Path] = []  # this process's sweep, if it started one
_seconds: list[float] = []  # that this process's jobs took, one after the other


class Jobs(Callback):
    """Holds the folder of a run or a sweep before Hydra writes to it, and prepares a sweep.

    A sweep's jobs learn how many they are, and what an earlier start noted of them is forgotten. Hydra's own sweeper
    records the sweep in its folder, others do not.
    """

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        if "resume" not in config or config.resume is not None or not is_first():
            return  # nothing is trained, or the folder is held already, or by another process of this run
        with _refused():
            folder = Path(config.hydra.run.dir)
            refuse_used(folder, "config.yaml")
            hold(folder)

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        with _refused():
            self._prepare(config)

    @staticmethod
    def _prepare(config: DictConfig) -> None:
        check_sweep(config.hydra)
        announce_jobs(config)
        folder = Path(config.hydra.sweep.dir)
        _refuse_another(config, folder)
        hold(folder)
        refuse_links_out(folder)
        _sweep[:] = [folder]
        shutil.rmtree(folder / FAILED_JOBS, ignore_errors=True)
        with replace_file(folder / SWEEP) as file:
            OmegaConf.save(config, file)


class Report(Callback):
    """Ends a sweep of `train.py` in a page that compares its runs, and leaves its outcome alone where that cannot be written."""

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        try:
            from ddpm_lightning.report import report_sweep  # torch and matplotlib are imported only when there is work

            print("", *report_sweep(Path(config.hydra.sweep.dir)), sep="\n", flush=True)
        except Exception as error:  # whatever it is, the runs are whole
            print(f"no report: {error}", file=sys.stderr, flush=True)


@contextmanager
def job(sentence: Callable[[BaseException], str]) -> Iterator[None]:
    """Note in the sweep's folder what ends a job before its time, and go on; a signal or Ctrl-C ends the sweep, too.

    Outside a sweep errors pass through.

    Args:
        sentence: an error in one sentence.
    """
    hydra = HydraConfig.get()
    if hydra.mode != RunMode.MULTIRUN:
        yield
        return
    (Path(hydra.sweep.dir) / FAILED_JOBS / f"{hydra.job.num}.json").unlink(missing_ok=True)  # of an earlier try
    begun, ended_before = time.monotonic(), has_finished(Path(hydra.runtime.output_dir))
    _announce(hydra, ended_before)
    with NamedTemporaryFile("r") as told:
        os.environ[TELL] = told.name
        try:
            yield
            if not ended_before:
                _seconds.append(time.monotonic() - begun)
        except (Exception, SystemExit) as error:
            if isinstance(error.__cause__, Stopped):
                again = shlex.quote(f"resume={os.path.relpath(hydra.sweep.dir)}")
                print(f"Go on with: python train.py -m {again}", flush=True)
                raise
            if isinstance(error, SystemExit) and "submitit" in hydra.launcher._target_:
                raise  # the job's time is over, and it has been submitted once more
            if isinstance(error, SystemExit) and not error.code:
                return
            if not isinstance(error, UserError | OmegaConfBaseException) or "DDPM_TRACEBACK" in os.environ:
                traceback.print_exc()
            why = told.read()
            if not why:  # else the job's own process has printed it
                why = f"exit code {error.code}" if isinstance(error, SystemExit) else sentence(error)
                print(f"error: {why}", file=sys.stderr, flush=True)
            _note(hydra, why)
        finally:
            del os.environ[TELL], os.environ[JOB]


def failed_jobs() -> str | None:
    """How many jobs of this process's sweep failed and, a line for each, their number, overrides and error; None for none."""
    failed = {number: job for folder in _sweep for number, job in failed_jobs_in(folder).items()}
    if not failed:
        return None
    named = [f"job {number} ({job['overrides']}): {job['why']}" for number, job in failed.items()]
    some = f"{len(failed)} of the sweep's jobs failed, the others have ended well:"
    head = "all of the sweep's jobs failed:" if str(len(failed)) == os.environ.get(JOBS) else some
    return "\n  ".join([head, *named])


def remove_refused() -> None:
    """Of a sweep that was refused before its first job, nothing is left."""
    for folder in _sweep:
        remove_unbegun(folder, SWEEP)


def tell_sweep(sentence: str) -> None:
    """Hand this process's error to the sweep that started it, if one did."""
    if path := os.environ.get(TELL):
        Path(path).write_text(sentence)


@contextmanager
def _refused() -> Iterator[None]:
    """Hydra makes a warning of all errors but an exit, and goes on."""
    try:
        yield
    except (UserError, HydraException) as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        sys.exit(f"error: {error.filename}: {error.strerror}: give another path, or mend this one")


def _refuse_another(config: DictConfig, folder: Path) -> None:
    """A folder that holds runs goes on with the sweep that began them, whose jobs would have other numbers in another."""
    if not (folder / SWEEP).exists() or not any(folder.glob("*/config.yaml")):
        return
    before = recorded_sweep(folder)
    now: Any = OmegaConf.to_container(config.hydra)
    if any(now[part].get(key) != before[part].get(key) for part, key in (("overrides", "task"), ("sweeper", "params"))):
        raise UserError(
            f"hydra.sweep.dir={folder} holds another sweep, begun by {' '.join(before['overrides']['task'])}: go on with it by "
            f"-m resume={folder} and nothing else, or choose another folder"
        )


def _note(hydra: Any, why: str) -> None:
    """A file for each failed job, since a launcher may run them in processes of their own, or on other machines."""
    notes = Path(hydra.sweep.dir) / FAILED_JOBS
    notes.mkdir(parents=True, exist_ok=True)
    with replace_file(notes / f"{hydra.job.num}.json") as file:
        file.write(json.dumps({"overrides": " ".join(swept(hydra.overrides.task)), "why": why}, indent=2) + "\n")


def _announce(hydra: Any, ended_before: bool) -> None:
    number, of = hydra.job.num, os.environ.get(JOBS)
    os.environ[JOB] = which = f"job {number + 1} of {of}" if of else f"job {number + 1}"
    end = ""
    if ended_before:
        end = ", which has ended before"
    elif of and _seconds and hydra.launcher._target_.endswith(".BasicLauncher"):
        seconds = sum(_seconds) / len(_seconds) * (int(of) - number)
        left = f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
        end = f", about {left} to the sweep's end"
    print(f"\n{which.capitalize()}: {' '.join(swept(hydra.overrides.task))}{end}", flush=True)


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
