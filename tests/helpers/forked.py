"""Starts of the entry points in processes that are forked from one which has imported everything: a start takes a second.

`python forked.py` reads starts from standard input, a line of JSON each, and answers each with a line of what came of it.
"""

import atexit
import functools
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

ROOT = Path(__file__).parents[2]
SECONDS = 120  # of one start, unless it says more


def start_all(starts):
    """What came of each: {"code", "out", "err", "seconds"}; a code below 0 is the signal that ended it.

    Args:
        starts: {"argv": the script and its arguments, or ["-m", "ddpm_lightning", ...], "cwd": a folder}, and, where they are
            not these, "env": the environment, "seconds": how long it may take.
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


def one(argv, cwd, env, seconds):
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        began, pid = time.monotonic(), os.fork()
        if pid == 0:
            os._exit(child(argv, cwd, env, out, err))
        while (ended := os.waitpid(pid, os.WNOHANG))[0] == 0:
            if time.monotonic() - began > seconds:
                os.kill(pid, signal.SIGKILL)
            time.sleep(0.02)
        for file in (out, err):
            file.seek(0)
        code = os.waitstatus_to_exitcode(ended[1])
        return {"code": code, "out": out.read(), "err": err.read(), "seconds": time.monotonic() - began}


def child(argv, cwd, env, out, err):
    os.environ.clear()
    os.environ.update(env)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(out.fileno(), 1)
    os.dup2(err.fileno(), 2)
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


def main():
    import ddpm_lightning.evaluation.pipeline
    import ddpm_lightning.plots
    import ddpm_lightning.report
    import ddpm_lightning.runs  # noqa: F401

    sys.path.insert(0, str(ROOT))
    for line in sys.stdin:
        print(json.dumps(one(**json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
