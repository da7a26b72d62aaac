"""The entry points as a user starts them, in processes of their own."""

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.helpers.configs import ROOT
from tests.helpers.forked import TORCHRUN, Begun, start_all, start_together


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


def torchrun(name, *args, cwd, nodes=1, per_node=2):
    """An entry point under as many of torchrun's agents as nodes, all on the loopback; what came of each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        where = [f"--nnodes={nodes}", "--master-addr=127.0.0.1", f"--master-port={free.getsockname()[1]}"]
    command = [*TORCHRUN, *where, f"--nproc-per-node={per_node}"]
    ranks = ([*command, f"--node-rank={node}", str(ROOT / name), *map(str, args)] for node in range(nodes))
    return start_together([{"argv": argv, "cwd": str(cwd), "env": _clean(cwd), "seconds": 300} for argv in ranks])


@contextmanager
def script_started(name, *args, cwd):
    """The same in a process group of its own, of which nothing is left afterwards."""
    process = Begun(argv=[name, *args], cwd=str(cwd), env=_clean(cwd), seconds=300)
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)


def until(condition, seconds=90):
    """Wait for a condition."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.2)


def _clean(cwd):
    ours = {k: v for k, v in os.environ.items() if not k.startswith(("WANDB", "PYTEST", "OMP", "HYDRA", "DDPM"))}
    return {**ours, "OMP_NUM_THREADS": "1", "NETRC": str(Path(cwd) / "no-netrc")}
