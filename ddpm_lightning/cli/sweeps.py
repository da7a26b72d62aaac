"""A sweep and its jobs: how many there are and in what they differ, how each one starts and ends, and which of them failed."""

import json
import math
import os
import re
import shlex
import shutil
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, RangeSweep
from hydra.core.utils import JobReturn
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from ddpm_lightning import environment, run_folder
from ddpm_lightning.cli.mistakes import is_foreseen, sentence
from ddpm_lightning.errors import Stopped, UserError
from ddpm_lightning.files import replace_file
from ddpm_lightning.ranges import require, require_one_of
from ddpm_lightning.records.yaml import length, recorded_sweep
from ddpm_lightning.terminal import Activity

__all__ = ["Jobs", "Report", "Sweep", "job_name", "planned", "swept"]

_JOBS = 100_000  # of a sweep at most


class Jobs(Callback):
    """Holds the folder of a run or a sweep before Hydra writes to it, and announces a sweep's jobs.

    Hydra's own sweeper records the sweep in its folder; others do not, so it is done here.
    """

    def __init__(self) -> None:
        self._seconds: list[float] = []  # of each job that this process ran
        self._begun: float | None = None  # when the job began; None for one that had finished before

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        if "resume" not in config or config.resume is not None or not environment.is_first():
            return  # nothing is trained, or the folder is held already, or by another process of this run
        with _refused():
            folder = Path(config.hydra.run.dir)
            run_folder.refuse_used(folder)
            run_folder.hold(folder)

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        with _refused():
            Sweep(Path(config.hydra.sweep.dir)).begin(config)

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        hydra = config.hydra
        if hydra.mode != RunMode.MULTIRUN:
            return
        Sweep(Path(hydra.sweep.dir)).forget(hydra.job.num)
        of = environment.current().num_jobs
        job = f"job {hydra.job.num + 1}" + (f" of {of}" if of else "")
        environment.update(job=job)
        finished, end = run_folder.has_finished(Path(hydra.runtime.output_dir)), ""
        if finished:
            end = ", already finished"
        elif of and self._seconds:
            seconds = sum(self._seconds) / len(self._seconds) * (of - hydra.job.num)
            left = f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
            end = f", about {left} left in the sweep"
        print(f"\n{job.capitalize()}: {' '.join(swept(hydra.overrides.task))}{end}", flush=True)
        self._begun = None if finished else time.monotonic()

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        hydra = config.hydra
        if self._begun is not None and hydra.job.num not in run_folder.failed_jobs_in(Path(hydra.sweep.dir)):
            self._seconds.append(time.monotonic() - self._begun)


class Report(Callback):
    """Ends a sweep of `train.py` with its verdict and a page that compares its runs; the sweep succeeds without the page, too."""

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        try:
            with Activity("Writing the report"):
                from ddpm_lightning.report import report_sweep  # torch is imported only when there is work

                found = report_sweep(Path(config.hydra.sweep.dir), metric=config.get("optimized_metric"))
            print("", *found, sep="\n", flush=True)
        except Exception as error:
            print(f"the report cannot be written: {error}", file=sys.stderr, flush=True)


class Sweep:
    """A sweep in its folder, which keeps its config and a note of each failed job.

    Args:
        folder: multirun/<day>/<time>, or what hydra.sweep.dir says.
    """

    started: ClassVar["Sweep | None"] = None  # the one that this process started, if it did

    def __init__(self, folder: Path):
        self.folder, self._notes = folder, folder / run_folder.FAILED_JOBS

    def begin(self, config: DictConfig) -> None:
        """Hold the folder, record the sweep in it, and let the jobs know how many they are, wherever a launcher runs them.

        Raises:
            HydraException, UserError: for a sweep that cannot run, or is another than the one in the folder.
        """
        _check_numbers(config.hydra)
        keys, jobs = planned(config.hydra)
        if (self.folder / run_folder.SWEEP).exists() and any(self.folder.glob("*/config.yaml")):
            self._refuse_another(config)
        run_folder.hold(self.folder)
        run_folder.refuse_pipes(self.folder, and_links_out=True)
        environment.update(swept=keys, num_jobs=jobs)
        Sweep.started = self
        shutil.rmtree(self._notes, ignore_errors=True)
        with replace_file(self.folder / run_folder.SWEEP) as file:
            OmegaConf.save(config, file)

    def _refuse_another(self, config: DictConfig) -> None:
        """The jobs of another sweep would have other numbers, and so other folders."""
        before = recorded_sweep(self.folder)
        now: Any = OmegaConf.to_container(config.hydra)
        if any(
            now[part].get(key) != before[part].get(key) for part, key in (("overrides", "task"), ("sweeper", "params"))
        ):
            raise UserError(
                f"hydra.sweep.dir={self.folder} holds another sweep, started with {' '.join(before['overrides']['task'])}: "
                f"resume that one with -m resume={self.folder} and nothing else, or choose another folder"
            )

    def forget(self, job: int) -> None:
        """Remove the note of a job that failed in an earlier start."""
        (self._notes / f"{job}.json").unlink(missing_ok=True)

    def continues_after(self, error: BaseException, hydra: Any) -> bool:
        """Note and print what ended a job early; False for a signal or Ctrl-C, which end the sweep, too.

        A note is a file, since a launcher may run the jobs in other processes or on other machines.
        """
        if isinstance(error.__cause__, Stopped):
            again = shlex.quote(f"resume={os.path.relpath(self.folder)}")
            trust = environment.trust_argument(environment.current().trust)
            print(f"Resume with: {environment.command('train')} -m {again} {trust}".rstrip(), flush=True)
            return False
        if isinstance(error, SystemExit) and "submitit" in hydra.launcher._target_:
            return False  # the job's time is over, and it has been submitted once more
        if isinstance(error, SystemExit) and not error.code:
            return True
        if not is_foreseen(error) or environment.shows_traceback():
            traceback.print_exception(error)
        why = f"exit code {error.code}" if isinstance(error, SystemExit) else sentence(error)
        print(f"error: {why}", file=sys.stderr, flush=True)
        self._notes.mkdir(parents=True, exist_ok=True)
        with replace_file(self._notes / f"{hydra.job.num}.json") as file:
            file.write(json.dumps({"overrides": " ".join(swept(hydra.overrides.task)), "why": why}, indent=2) + "\n")
        return True

    def failures(self) -> str:
        """The number of failed jobs and, on a line each, their numbers, overrides and errors; empty where none failed."""
        failed = run_folder.failed_jobs_in(self.folder)
        if not failed:
            return ""
        all_failed = len(failed) == environment.current().num_jobs
        some = f"{len(failed)} of the sweep's jobs failed; the others finished:"
        named = [f"job {number} ({job['overrides']}): {job['why']}" for number, job in failed.items()]
        return "\n  ".join(["all of the sweep's jobs failed:" if all_failed else some, *named])


@contextmanager
def _refused() -> Iterator[None]:
    """Exit with a sentence: of all other errors in a callback Hydra makes a warning, and continues."""
    try:
        yield
    except (UserError, HydraException, OSError) as error:
        sys.exit(f"error: {sentence(error)}")


def planned(hydra: Any) -> tuple[list[str], int]:
    """The keys in which a sweep's jobs differ, and the number of jobs, as its `hydra` node says.

    Raises:
        HydraException: for overrides that cannot be read.
        UserError: for an interval that cannot be searched, and for too many jobs.
    """
    chosen = [f"{key}={value}" for key, value in (hydra["sweeper"].get("params") or {}).items()]
    parsed = OverridesParser.create().parse_overrides([*chosen, *hydra["overrides"]["task"]])
    last = {override.get_key_element(): override for override in parsed}
    sweeps = {key.lstrip("+~"): override for key, override in last.items() if override.is_sweep_override()}
    searched = "n_trials" in hydra["sweeper"]
    counts = []
    for override in sweeps.values():
        if override.is_interval_sweep():
            _check_interval(override, searched)
        else:
            counts.append(_count(override))
    jobs = max(counts, default=1) if searched else math.prod(counts)
    require("the sweep's number of jobs", jobs, f"1..{_JOBS}", hint="give fewer values")
    return [*sweeps], hydra["sweeper"]["n_trials"] if searched else jobs


def swept(overrides: Sequence[str]) -> list[str]:
    """A job's overrides that the other jobs of its sweep do not share; all of them where none is known to differ."""
    keys = environment.current().swept
    return [text for text in overrides if text.lstrip("+~").partition("=")[0] in keys] or [*overrides]


def job_name(overrides: Sequence[str]) -> str:
    """A folder name of at most 80 characters from what distinguishes a job, without what a shell or Hydra would read."""
    return re.sub(r"[^A-Za-z0-9.,+-]+", "_", ",".join(swept(overrides))).strip("_")[:80]


def _count(override: Override) -> int:
    """The number of values; about that of a range that is too long for a sweep, without listing them."""
    values = override.value()
    if isinstance(values, RangeSweep) and length(values) > _JOBS:
        return int(min(length(values), 10**18))
    return len([*override.sweep_string_iterator()])


def _check_interval(override: Override, searched: bool) -> None:
    interval: Any = override.value()
    low, ordered = 0 if "log" in interval.tags else -math.inf, interval.start < interval.end
    if not (searched and ordered and interval.start > low):
        raise UserError(
            f"{override.input_line}: an interval requires sweep=optuna, with its lower bound first, which must be positive with tag(log, ...); "
            "for a grid, list the values, as in 1,2,3"
        )


def _check_numbers(hydra: Any) -> None:
    """Refuse numbers that a sweep's launcher or sweeper would fail on."""
    at_once = max(64, 4 * (os.cpu_count() or 1))
    require("hydra.sweeper.n_trials", hydra.sweeper.get("n_trials", 1), "1..")
    require("hydra.sweeper.n_jobs", hydra.sweeper.get("n_jobs", 1), f"1..{at_once}")
    if (jobs := hydra.launcher.get("n_jobs", 1)) != -1:
        require("hydra.launcher.n_jobs", jobs, f"1..{at_once}", hint="or -1 for one per core")
    direction = hydra.sweeper.get("direction", "minimize")
    require_one_of("hydra.sweeper.direction", getattr(direction, "name", direction), ("minimize", "maximize"))
