"""The entry points as a user starts them, in processes of their own."""

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.helpers.configs import ROOT
from tests.helpers.forked import start_all


def run_folders(cwd, root="outputs"):
    return sorted(p.parent for p in (cwd / root).glob("**/config.yaml") if p.parent.name != ".hydra")


def script(name, *args, cwd, env=None, timeout=300, fresh=False):
    """Run an entry point as a user does, without any W&B key: forked, or in a fresh interpreter, which reads PYTHON... by itself."""
    if fresh or any(key.startswith("PYTHON") for key in env or {}):
        return subprocess.run(
            [sys.executable, str(ROOT / name), *args],
            cwd=cwd,
            env=_clean(cwd) | (env or {}),
            timeout=timeout,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            check=False,
        )
    start = {"argv": [name, *args], "cwd": str(cwd), "env": _clean(cwd) | (env or {}), "seconds": timeout}
    (result,) = start_all([start])
    assert result["seconds"] < timeout, result
    return subprocess.CompletedProcess([name, *args], result["code"], result["out"], result["err"])


@contextmanager
def script_started(name, *args, cwd):
    """The same in a process group of its own, of which nothing is left afterwards."""
    with (Path(cwd) / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, str(ROOT / name), *args],
            cwd=cwd,
            env=_clean(cwd),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def until(condition, seconds=90):
    """Wait for a condition."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.2)


def _clean(cwd):
    ours = {k: v for k, v in os.environ.items() if not k.startswith(("WANDB", "PYTEST", "OMP", "HYDRA", "DDPM"))}
    return {**ours, "OMP_NUM_THREADS": "1", "NETRC": str(Path(cwd) / "no-netrc")}
