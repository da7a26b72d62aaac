"""The processes of a run: Lightning's ranks, a sweep's jobs, SLURM's requeueing, and GPU and memory assignment."""

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

_GRACE = 10.0  # seconds that a process has to exit by itself after losing another one

log = logging.getLogger(__name__)


def in_processes_of_its_own(run_dir: Path, *, resumes: bool) -> None:
    """Run a sweep's multi-process job as a separate `python train.py` without the sweep.

    Otherwise Lightning would start its ranks with the sweep's command line, and leave their environment variables for the
    next job.

    Args:
        run_dir: the job's folder.
        resumes: whether the job resumes an earlier run.

    Raises:
        UserError: if the job failed.
        SystemExit: after a signal, which is forwarded to the job: it saves a checkpoint, and the sweep ends.
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
    """The user's config folders, as passed to this process."""
    hydra = HydraConfig.get()
    given = [source.path for source in hydra.runtime.config_sources if source.provider == "command-line"]
    searched = [text for text in hydra.overrides.hydra if text.startswith("hydra.searchpath=")]
    return [*(f"--config-dir={path}" for path in given), *searched]


def _wait(process: "subprocess.Popen[bytes]") -> int:
    """Wait for a job, forwarding signals to it, and return its exit code."""
    stopped: list[int] = []

    def pass_on(number: int, frame: Any) -> None:
        stopped.append(number)
        if number != signal.SIGINT:  # Ctrl-C reaches the job from the terminal
            process.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in STOP_SIGNALS}
    try:
        code = process.wait()
    except BaseException:  # from a launcher at its time limit
        process.terminate()
        process.wait()
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if stopped:
        raise SystemExit(128 + stopped[0]) from Stopped(stopped[0])
    return code


@functools.cache  # assigned once per process
def take_gpu() -> None:
    """Reserve a GPU for this process if joblib runs several processes in parallel on this machine.

    Uses the GPUs in CUDA_VISIBLE_DEVICES, or all. If there are more processes than GPUs, they share evenly.
    """
    if not HydraConfig.initialized() or not HydraConfig.get().launcher._target_.endswith(".JoblibLauncher"):
        return
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = [str(i) for i in range(torch.cuda.device_count())] if named is None else [g for g in named.split(",") if g]
    if len(gpus) < 2:
        return
    user = os.getuid() if hasattr(os, "getuid") else ""  # on Windows the folder is per user
    for turn, gpu in ((turn, gpu) for turn in itertools.count() for gpu in gpus):
        if try_lock(Path(gettempdir()) / f"ddpm_lightning_{user}_gpu_{gpu}_{turn}") is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = gpu
            return


class Ranks(Thread):
    """Watches the ranks started by Lightning; if one dies, ends the run with the reason.

    Replaces Lightning's own observer, which would kill this process without a message.

    Args:
        trainer: the trainer, before it starts the ranks.
        give_up: called with the message if this process has not ended the run within 10 seconds, since it may be waiting for
            the dead rank.
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
        """How the first failed rank ended, waiting up to `seconds`; empty if none has failed."""
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
        """Stop watching, and terminate the ranks still running after `seconds`."""
        self.lost()  # includes ranks just started
        self._over.set()
        if self.is_alive():
            self.join(5)  # a thread that still runs at the interpreter's end could abort it
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
    """Requeue the SLURM job, if any, after SLURM's warning of its time limit."""
    if "SLURM_JOB_ID" not in os.environ:
        return
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    job = f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ["SLURM_JOB_ID"]
    try:
        subprocess.run(["scontrol", "requeue", job], check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        log.warning("job %s was not requeued (%s): submit it again to resume the run", job, error)


def total_memory() -> float:
    """This machine's memory in bytes; infinite if unknown, as on Windows."""
    if not hasattr(os, "sysconf"):
        return math.inf
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def keep_freed_memory() -> None:
    """Make glibc keep large freed blocks, since each step needs them again and new pages are slow.

    Saves a quarter of the step time for Ho et al.'s network at 32×32 with batch size 16.
    """
    if platform.libc_ver()[0] == "glibc":
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(-4, 0)  # M_MMAP_MAX
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD
