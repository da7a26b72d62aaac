"""The processes of a run: those that Lightning starts, a sweep's jobs, SLURM's, and this one's memory."""

import ctypes
import fcntl
import itertools
import logging
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO, Any

import torch
from hydra.core.hydra_config import HydraConfig
from lightning.pytorch import Trainer

from ddpm_lightning.environment import SCRIPT, quoted
from ddpm_lightning.errors import Stopped, UserError

__all__ = ["end_children", "in_processes_of_its_own", "keep_freed_memory", "requeue", "take_gpu"]

log = logging.getLogger(__name__)

_gpu: list[IO[str]] = []  # the lock of this process's GPU


def in_processes_of_its_own(run_dir: Path, *, goes_on: bool) -> None:
    """A sweep's job with several processes, as a fresh `python train.py` that is no sweep.

    In this process Lightning would start its children with the sweep's own command line, and leave its ranks in the
    environment for the next job.

    Args:
        run_dir: the job's folder.
        goes_on: whether the job has begun before, and goes on where it stopped.

    Raises:
        UserError: where the job failed.
        SystemExit: where a signal came, which is passed on to the job: it saves, and the sweep ends.
    """
    ranks = ("LOCAL_RANK", "GLOBAL_RANK", "NODE_RANK", "RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_", "PL_")
    tasks = ("SLURM_NTASKS", "SLURM_STEP_", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID")  # a launcher's one task
    env = {key: value for key, value in os.environ.items() if not key.startswith((*ranks, *tasks))}
    anew = [*HydraConfig.get().overrides.task, f"hydra.run.dir={quoted(run_dir)}", "hydra.mode=RUN"]
    arguments = [f"resume={quoted(run_dir)}"] if goes_on else anew
    process = subprocess.Popen([sys.executable, os.environ[SCRIPT], *arguments], env=env)
    stopped: list[int] = []

    def pass_on(number: int, frame: Any) -> None:
        stopped.append(number)
        if number != signal.SIGINT:  # Ctrl-C has reached the job itself, from the terminal
            process.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)}
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
    if code:
        raise UserError(f"the job in {run_dir} ended with exit code {code}")


def take_gpu() -> None:
    """Give this process, if joblib runs it and others side by side on this machine, a GPU of its own until it ends.

    The GPUs are those that CUDA_VISIBLE_DEVICES names, or all. Where there are more processes than GPUs, they share evenly.
    """
    if _gpu or not HydraConfig.initialized() or not HydraConfig.get().launcher._target_.endswith(".JoblibLauncher"):
        return
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = [str(i) for i in range(torch.cuda.device_count())] if named is None else [g for g in named.split(",") if g]
    if len(gpus) < 2:
        return
    for turn, gpu in ((turn, gpu) for turn in itertools.count() for gpu in gpus):
        lock = (Path(tempfile.gettempdir()) / f"ddpm_lightning_{os.getuid()}_gpu_{gpu}_{turn}").open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            continue
        _gpu.append(lock)
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
        return


def end_children(trainer: Trainer) -> None:
    """The processes that Lightning started, after an error: they have 20 seconds to end by themselves.

    Lightning's observer is given none to watch first: it would kill this process too, in the midst of its last words.
    """
    procs = getattr(trainer.strategy.launcher, "procs", [])
    mine, deadline = list(procs), time.monotonic() + 20
    procs.clear()
    for process in mine:
        try:
            process.wait(max(0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()


def requeue() -> None:
    """Ask SLURM, if this is one of its jobs, to start it again: its warning was that the time is nearly over."""
    if "SLURM_JOB_ID" not in os.environ:
        return
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    job = f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ["SLURM_JOB_ID"]
    try:
        subprocess.run(["scontrol", "requeue", job], check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        log.warning("job %s was not started again (%s): submit it once more, it goes on where it stopped", job, error)


def keep_freed_memory() -> None:
    """Ask glibc not to give large blocks back to the system: each step wants them again, and fresh pages are slow.

    A quarter of a step's time for Ho et al.'s network at 32×32, batch 16.
    """
    if platform.libc_ver()[0] == "glibc":
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(-4, 0)  # M_MMAP_MAX
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD
