"""Many starts of the entry points in processes that are forked from one which has imported everything: a start takes a second.

`python forked.py` reads a list of starts from standard input as JSON, and writes what came of them.
"""

import atexit
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
SECONDS = 120  # of one start


def start_all(starts):
    """What came of each: {"code", "out", "err", "seconds"}; a code below 0 is the signal that ended it.

    Args:
        starts: {"argv": the script and its arguments, or ["-m", "ddpm_lightning", ...], "cwd": a folder}.
    """
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("WANDB", "PYTEST", "OMP", "HYDRA", "DDPM"))}
    env = {**kept, "OMP_NUM_THREADS": "1", "NETRC": "no-netrc", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, __file__], input=json.dumps(starts), env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def one(argv, cwd):
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        began, pid = time.monotonic(), os.fork()
        if pid == 0:
            os._exit(child(argv, cwd, out, err))
        while (ended := os.waitpid(pid, os.WNOHANG))[0] == 0:
            if time.monotonic() - began > SECONDS:
                os.kill(pid, signal.SIGKILL)
            time.sleep(0.02)
        for file in (out, err):
            file.seek(0)
        code = os.waitstatus_to_exitcode(ended[1])
        return {"code": code, "out": out.read(), "err": err.read(), "seconds": time.monotonic() - began}


def child(argv, cwd, out, err):
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
    starts = json.load(sys.stdin)
    import ddpm_lightning.plots
    import ddpm_lightning.report
    import ddpm_lightning.runs  # noqa: F401

    sys.path.insert(0, str(ROOT))
    json.dump([one(**start) for start in starts], sys.stdout)


if __name__ == "__main__":
    main()
