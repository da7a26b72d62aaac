"""Starts of the entry points in processes that are forked from one which has imported everything: a start takes a second.

`python forked.py` reads from standard input, a line of JSON each, starts that run at the same time and are waited for, or one that
begins, and answers with a line of what came of them. The entry points that such a process starts itself, such as torchrun's and
Lightning's ranks and a sweep's jobs, are forked, too.
"""

import atexit
import ctypes
import functools
import gc
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
TORCHRUN = ["-m", "torch.distributed.run"]
STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
SECONDS = 120  # of one start, unless it says more


def start_all(starts, python=sys.executable):
    """What came of each, one after the other: {"code", "out", "err", "seconds"}; a code below 0 is the signal that ended it.

    Args:
        starts: {"argv": the script and its arguments, or ["-m", "ddpm_lightning", ...], "cwd": a folder}, and, where they are
            not these, "env": the environment, "seconds": how long it may take, "signals": [[a file's name, or a pattern of it, seconds
            behind its appearance, a signal], ...], which are sent in this order.
        python: the interpreter; another than this one's imports the package that is installed there.
    """
    return [result for start in starts for result in start_together([start], python)]


def start_together(starts, python=sys.executable):
    """The same of starts that run at the same time."""
    return ask(python, "together", [_usual(python) | start for start in starts])


class Begun:
    """A start in a process group of its own, which goes on while the test does; the arguments are those of `start_all`."""

    def __init__(self, **start):
        whole = _usual(sys.executable) | {"own_session": True} | start
        self.pid, self.result = ask(sys.executable, "begin", whole), None

    def poll(self):
        """The exit code; None while it runs."""
        self.result = self.result or ask(sys.executable, "look", self.pid)
        return self.result and self.result["code"]

    def wait(self, seconds):
        """The exit code, in time."""
        end = time.monotonic() + seconds
        while self.poll() is None:
            assert time.monotonic() < end
            time.sleep(0.02)
        return self.poll()


def ask(python, what, about):
    server = _server(python)
    server.stdin.write(json.dumps([what, about]) + "\n")
    server.stdin.flush()
    return json.loads(server.stdout.readline())


def _usual(python):
    """What a start has unless it says otherwise."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("WANDB", "PYTEST", "OMP", "HYDRA", "DDPM"))}
    env = {**kept, "OMP_NUM_THREADS": "1", "NETRC": "no-netrc", "HF_HUB_OFFLINE": "1", **_path(python)}
    return {"env": env, "seconds": SECONDS}


def _path(python):
    return {"PYTHONPATH": str(ROOT) if python == sys.executable else ""}


@functools.cache
def _server(python):
    """One for each process of the tests; it ends with its standard input."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", **_path(python)}
    command = [python, "-P", __file__]  # beside it lie modules with other libraries' names
    return subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


class Start:
    """A start that runs; `result` is None until it has ended."""

    def __init__(self, argv, cwd, env, seconds, signals=(), own_session=False):
        self.cwd, self.seconds, self.signals, self.result = cwd, seconds, [*signals], None
        self.files = tempfile.TemporaryFile("w+"), tempfile.TemporaryFile("w+")  # noqa: SIM115  closed in `look`
        self.began, self.pid = time.monotonic(), os.fork()
        if self.pid == 0:
            os._exit(child(argv, cwd, env, *self.files, own_session=own_session))

    def look(self):
        if self.result is not None:
            return self.result
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        after = time.monotonic() - self.began
        if pid:
            texts = []
            for file in self.files:
                with file:
                    file.seek(0)
                    texts.append(file.read())
            code = os.waitstatus_to_exitcode(status)
            self.result = {"code": code, "out": texts[0], "err": texts[1], "seconds": after}
        elif after > self.seconds:
            os.kill(self.pid, signal.SIGKILL)
        elif self.signals and any(Path(self.cwd).glob(self.signals[0][0])):
            _, wait, number = self.signals.pop(0)
            time.sleep(wait)
            os.kill(self.pid, number)
        return self.result


def together(starts):
    running = [Start(**start) for start in starts]
    while left := [start for start in running if start.result is None]:
        for start in left:
            start.look()
        time.sleep(0.005)
    return [start.result for start in running]


def child(argv, cwd, env, out=None, err=None, own_session=False):
    if own_session:
        os.setsid()
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
    if elastic := sys.modules.get("torch.distributed.elastic.multiprocessing.subprocess_handler.subprocess_handler"):
        elastic.Popen = Popen
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
        own_session = options.get("start_new_session", False)
        given = {name for name, value in options.items() if value is not None}
        argv = None if rest or given - {"env", "cwd", "start_new_session"} else entry_point([*args])
        if argv is None:
            super().__init__(args, *rest, **options)
            return
        self.args, self.returncode, self.stdin, self.stdout, self.stderr = args, None, None, None, None
        self._child_created, self._waitpid_lock, self._sigint_wait_secs = True, threading.Lock(), 0.25
        start = {
            "argv": argv,
            "cwd": str(options.get("cwd") or os.getcwd()),
            "env": dict(options.get("env") or os.environ),
            "own_session": own_session,
        }
        self.starter.write(json.dumps({"parent": os.getpid(), **start}) + "\n")
        self.starter.flush()
        self.pid = int(self.starter.readline())


def entry_point(args):
    """The script and its arguments, or "-m" and these, of a command that starts one of ours; None for another."""
    first, *others = args
    if first != sys.executable or not others:
        return None
    others = others[others[0] == "-u" :]
    if others[:2] == TORCHRUN or (others[0] == "-m" and others[1].startswith("ddpm_lightning")):
        return others
    path = Path(others[0])
    return others if path.is_absolute() and path.suffix == ".py" else None


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


def warm():
    """What is done once in a process, and would be done in each."""
    for name in WARM:
        importlib.import_module(name)
    import torch
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from omegaconf import OmegaConf

    from ddpm_lightning.models.cost import matmul_speed

    matmul_speed(torch.device("cpu"))
    OverridesParser.create().parse_overrides(
        ["a/b@c=d", "+a.b=[1,2.5,x]", "~a", "a={b:null,c:'d'}", "a=range(0,2),1e-3"]
    )
    OmegaConf.to_container(OmegaConf.create({"a": "${b}x${oc.select:b,1}", "b": 1}), resolve=True)
    gc.collect()
    gc.freeze()  # no start looks through what all of them share


def main():
    warm()
    begun = {}
    for line in sys.stdin:
        what, about = json.loads(line)
        if what == "together":
            answer = together(about)
        elif what == "begin":
            start = Start(**about)
            begun[answer := start.pid] = start
        else:
            answer = begun[about].look()
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
