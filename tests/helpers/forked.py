"""Starts of the entry points in processes that are forked from one which has imported everything: a start takes a second.

`python forked.py` reads starts from standard input, a line of JSON each, and answers each with a line of what came of it. The entry
points that such a process starts itself, such as Lightning's ranks and a sweep's jobs, are forked, too.
"""

import atexit
import ctypes
import functools
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from pathlib import Path

ROOT = Path(__file__).parents[2]
WARM = (
    "ddpm_lightning.evaluation.pipeline",
    "ddpm_lightning.plots",
    "ddpm_lightning.report",
    "ddpm_lightning.runs",
    "sklearn.datasets",
)
STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
SECONDS = 120  # of one start, unless it says more


def start_all(starts):
    """What came of each: {"code", "out", "err", "seconds"}; a code below 0 is the signal that ended it.

    Args:
        starts: {"argv": the script and its arguments, or ["-m", "ddpm_lightning", ...], "cwd": a folder}, and, where they are
            not these, "env": the environment, "seconds": how long it may take, "signals": [[a file's name, or a pattern of it, seconds
            behind its appearance, a signal], ...], which are sent in this order.
    """
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("WANDB", "PYTEST", "OMP", "HYDRA", "DDPM"))}
    env = {**kept, "OMP_NUM_THREADS": "1", "NETRC": "no-netrc", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    server = _server()
    results = []
    for start in starts:
        server.stdin.write(json.dumps({"env": env, "seconds": SECONDS, **start}) + "\n")
        server.stdin.flush()
        results.append(json.loads(server.stdout.readline()))
    return results


@functools.cache
def _server():
    """One for each process of the tests; it ends with its standard input."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, __file__]
    return subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def one(argv, cwd, env, seconds, signals=()):
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        began, pid = time.monotonic(), os.fork()
        if pid == 0:
            os._exit(child(argv, cwd, env, out, err))
        while (ended := os.waitpid(pid, os.WNOHANG))[0] == 0:
            if time.monotonic() - began > seconds:
                os.kill(pid, signal.SIGKILL)
            if signals and any(Path(cwd).glob(signals[0][0])):
                _, wait, number = signals.pop(0)
                time.sleep(wait)
                os.kill(pid, number)
            time.sleep(0.005)
        for file in (out, err):
            file.seek(0)
        code = os.waitstatus_to_exitcode(ended[1])
        return {"code": code, "out": out.read(), "err": err.read(), "seconds": time.monotonic() - began}


def child(argv, cwd, env, out=None, err=None):
    os.environ.clear()
    os.environ.update(env)
    if out is not None:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(out.fileno(), 1)
        os.dup2(err.fileno(), 2)
    from lightning.fabric.utilities import rank_zero  # which this module's importer need not load

    rank_zero.rank_zero_only.rank = rank_zero._get_rank() or 0  # as where Lightning is imported
    Popen.starter = starter()
    subprocess.Popen = Popen
    os.chdir(cwd)
    code = 0
    try:
        if argv[0] == "-m":
            sys.argv = argv[1:]
            runpy.run_module(argv[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = [str(ROOT / argv[0]), *argv[1:]]
            runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as error:
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    return code


class Popen(subprocess.Popen):
    """As `subprocess.Popen`; one of our entry points is forked from a process as it was before this one's start."""

    starter = None

    def __init__(self, args, *rest, **options):
        argv = None if rest or {*options} - {"env", "cwd"} else entry_point(args)
        if argv is None:
            super().__init__(args, *rest, **options)
            return
        self.args, self.returncode, self.stdin, self.stdout, self.stderr = args, None, None, None, None
        self._child_created, self._waitpid_lock, self._sigint_wait_secs = True, threading.Lock(), 0.25
        start = {
            "argv": argv,
            "cwd": str(options.get("cwd") or os.getcwd()),
            "env": dict(options.get("env") or os.environ),
        }
        self.starter.write(json.dumps({"parent": os.getpid(), **start}) + "\n")
        self.starter.flush()
        self.pid = int(self.starter.readline())


def entry_point(args):
    """The script and its arguments, or "-m" and these, of a command that starts one of ours; None for another."""
    first, *others = args if isinstance(args, list) else [None]
    if first != sys.executable or not others:
        return None
    if others[0] == "-m" and others[1].startswith("ddpm_lightning"):
        return others
    return [Path(others[0]).name, *others[1:]] if Path(others[0]).parent == ROOT else None


def starter():
    """A process that forks others for this one, which become this one's children, as it is their next subreaper."""
    ours, theirs = socket.socketpair()
    ctypes.CDLL(None).prctl(36, 1)  # PR_SET_CHILD_SUBREAPER
    if os.fork():
        theirs.close()
        return ours.makefile("rw")
    ours.close()
    for number in STOPS:
        signal.signal(number, signal.SIG_IGN)
    file = theirs.makefile("rw")
    for line in file:
        start = json.loads(line)
        if pid := os.fork():
            os.waitpid(pid, 0)
            continue
        if os.fork():
            os._exit(0)
        parent = start.pop("parent")
        while os.getppid() != parent:
            time.sleep(0.001)
        file.write(f"{os.getpid()}\n")
        file.flush()
        for number in STOPS:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        os._exit(child(**start))
    os._exit(0)


def main():
    for name in WARM:
        importlib.import_module(name)
    sys.path.insert(0, str(ROOT))
    for line in sys.stdin:
        print(json.dumps(one(**json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
