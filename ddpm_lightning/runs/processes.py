"""The processes of a run: those that Lightning starts, a sweep's jobs, SLURM's, and this one's memory."""

import ctypes
import functools
import itertools
import logging
import math
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from threading import Event, Thread
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from lightning.pytorch import Trainer

from ddpm_lightning import environment
from ddpm_lightning.errors import STOP_SIGNALS, Stopped, UserError
from ddpm_lightning.files import try_lock
from ddpm_lightning.records.yaml import quoted

__all__ = ["Ranks", "in_processes_of_its_own", "keep_freed_memory", "requeue", "take_gpu", "total_memory"]

_GRACE = 10.0  # seconds in which a process that has lost another one may end by itself

log = logging.getLogger(__name__)


def in_processes_of_its_own(run_dir: Path, *, resumes: bool) -> None:
    """Run a sweep's job with several processes as a fresh `python train.py` that starts no sweep.

    In this process Lightning would start its children with the sweep's own command line, and leave its ranks in the
    environment for the next job.

    Args:
        run_dir: the job's folder.
        resumes: whether the job has started before, and resumes where it stopped.

    Raises:
        UserError: where the job failed.
        SystemExit: where a signal came, which is passed on to the job: it saves, and the sweep ends.
    """
    anew = [*HydraConfig.get().overrides.task, f"hydra.run.dir={quoted(run_dir)}", "hydra.mode=RUN"]
    command = [environment.current().script, *_config_folders(), *([f"resume={quoted(run_dir)}"] if resumes else anew)]
    with TemporaryDirectory() as folder:
        error_file = Path(folder) / "error"
        code = _wait(subprocess.Popen([sys.executable, *command], env=environment.for_a_job(error_file)))
        if code:
            told = error_file.read_text(encoding="utf-8") if error_file.exists() else ""
            raise UserError(told or f"the job in {run_dir} ended with exit code {code}")


def _config_folders() -> list[str]:
    """The user's own config folders, as this process was given them."""
    hydra = HydraConfig.get()
    given = [source.path for source in hydra.runtime.config_sources if source.provider == "command-line"]
    searched = [text for text in hydra.overrides.hydra if text.startswith("hydra.searchpath=")]
    return [*(f"--config-dir={path}" for path in given), *searched]


def _wait(process: "subprocess.Popen[bytes]") -> int:
    """The exit code of a job, to which signals to this process are passed on."""
    stopped: list[int] = []

    def pass_on(number: int, frame: Any) -> None:
        stopped.append(number)
        if number != signal.SIGINT:  # Ctrl-C has reached the job itself, from the terminal
            process.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in STOP_SIGNALS}
    try:
        code = process.wait()
    except BaseException:  # of a launcher whose time is over
        process.terminate()
        process.wait()
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if stopped:
        raise SystemExit(128 + stopped[0]) from Stopped(stopped[0])
    return code


@functools.cache  # a process keeps what it has
def take_gpu() -> None:
    """Give this process, if joblib runs it and others side by side on this machine, a GPU of its own until it ends.

    The GPUs are those that CUDA_VISIBLE_DEVICES names, or all. Where there are more processes than GPUs, they share evenly.
    """
    if not HydraConfig.initialized() or not HydraConfig.get().launcher._target_.endswith(".JoblibLauncher"):
        return
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = [str(i) for i in range(torch.cuda.device_count())] if named is None else [g for g in named.split(",") if g]
    if len(gpus) < 2:
        return
    user = os.getuid() if hasattr(os, "getuid") else ""  # on Windows the folder is the user's own
    for turn, gpu in ((turn, gpu) for turn in itertools.count() for gpu in gpus):
        if try_lock(Path(gettempdir()) / f"ddpm_lightning_{user}_gpu_{gpu}_{turn}") is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = gpu
            return


class Ranks(Thread):
    """Watches the processes that Lightning has started for a run; one that ends too soon ends the run, with what became of it.

    Lightning's own observer, which gets nothing to watch, would kill this process, too, without a word.

    Args:
        trainer: has not started them yet.
        give_up: called with the message where this process has not ended the run by itself 10 seconds later: it may wait
            for the other one forever.
    """

    def __init__(self, trainer: Trainer, give_up: Callable[[str], None]):
        super().__init__(daemon=True, name="ranks")
        self._launcher = trainer.strategy.launcher
        self._give_up = give_up
        self._processes: list[subprocess.Popen[bytes]] = []
        self._over = Event()

    def run(self) -> None:
        while not self._over.wait(0.5):
            if lost := self.lost():
                if not self._over.wait(_GRACE):
                    self._give_up(lost)
                return

    def lost(self, seconds: float = 0) -> str:
        """What became of the first of them that has ended with an error by then; empty where none has."""
        deadline = time.monotonic() + seconds
        while True:
            started = getattr(self._launcher, "procs", [])
            self._processes += started
            started.clear()
            for rank, process in enumerate(self._processes, 1):
                if code := process.poll():
                    return f"process {rank + 1} of {len(self._processes) + 1} on this machine {_how_it_ended(code)}"
            if time.monotonic() >= deadline:
                return ""
            time.sleep(0.1)

    def end(self, *, seconds: float = 20) -> None:
        """Stop watching, and end those that have not ended by themselves so many seconds later."""
        self.lost()  # those that have just been started
        self._over.set()
        deadline = time.monotonic() + seconds
        for process in self._processes:
            try:
                process.wait(max(0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()


def _how_it_ended(code: int) -> str:
    if code > 0:
        return f"ended with exit code {code}"
    reason = ", possibly out of memory" if -code == getattr(signal, "SIGKILL", 0) else ""
    return f"was killed by {signal.Signals(-code).name}{reason}"


def requeue() -> None:
    """Ask SLURM, if this is one of its jobs, to start it again: its warning was that the time is nearly over."""
    if "SLURM_JOB_ID" not in os.environ:
        return
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    job = f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ["SLURM_JOB_ID"]
    try:
        subprocess.run(["scontrol", "requeue", job], check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        log.warning("job %s was not requeued (%s): submit it again to resume the run", job, error)


def total_memory() -> float:
    """This machine's memory in bytes; infinite where the system does not tell, as on Windows."""
    if not hasattr(os, "sysconf"):
        return math.inf
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def keep_freed_memory() -> None:
    """Ask glibc not to give large blocks back to the system: each step needs them again, and fresh pages are slow.

    A quarter of a step's time for Ho et al.'s network at 32×32, batch 16.
    """
    if platform.libc_ver()[0] == "glibc":
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(-4, 0)  # M_MMAP_MAX
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD
