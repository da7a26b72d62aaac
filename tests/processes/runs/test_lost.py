"""What is said where a process, or the reader of what is printed, is lost: one sentence, and nothing else is."""

import json
import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest

from ddpm_lightning.data.source import Form, Share
from ddpm_lightning.data.streams import Stream
from ddpm_lightning.errors import UserError
from ddpm_lightning.runs import processes
from tests.helpers.configs import NO_FIGURES, ROOT, TINY
from tests.helpers.scripts import script_started, until
from tests.helpers.shards import endless


def test_a_killed_rank_ends_the_run_with_a_sentence(tmp_path):
    steps = [text for text in TINY if not text.startswith(("trainer.max_steps", "callbacks"))]
    command = [*steps, *NO_FIGURES, "trainer.max_steps=100000", "trainer=ddp_cpu", "logger=none", "hydra.run.dir=run"]
    with script_started("train.py", *command, cwd=tmp_path) as process:
        until((tmp_path / "run" / "metrics.csv").exists)
        listed = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True).stdout
        _, rank = [int(pid) for pid in listed.split()]  # the other is the process that forked it
        os.kill(rank, signal.SIGKILL)
        assert process.wait(60) == 1
    said = (process.result["out"] + process.result["err"]).splitlines()
    assert len([line for line in said if line.startswith("error:")]) == 1
    assert said[-1].startswith("error: process 2 of 2 on this machine was killed by SIGKILL, possibly out of memory")
    assert said[-1].endswith(f"resume with resume={tmp_path}/run")
    assert len(said) <= 10
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "failed"


def test_a_run_that_waits_for_a_lost_rank_is_given_up(monkeypatch):
    monkeypatch.setattr(processes, "_GRACE", 0.1)
    started = [subprocess.Popen(["sleep", "60"]) for _ in range(2)]
    launcher = SimpleNamespace(procs=list(started))
    given_up = []
    ranks = processes.Ranks(SimpleNamespace(strategy=SimpleNamespace(launcher=launcher)), given_up.append)
    ranks.start()
    until(lambda: not launcher.procs)  # Lightning's observer has none to watch
    assert ranks.lost() == ""
    started[1].kill()
    ranks.join(20)
    assert given_up == ["process 3 of 3 on this machine was killed by SIGKILL, possibly out of memory"]
    ranks.end(seconds=0)
    assert started[0].wait(10) == -signal.SIGKILL


def test_a_killed_worker_is_named(shards):
    found = Stream(str(shards), 1, image_size=(8, 8), workers=1).prepared(Form(1, (8, 8)))
    batches = endless(found.train_loader(Share(4), "cpu"))
    next(batches)
    (worker,) = workers_of(os.getpid())
    os.kill(worker, signal.SIGKILL)
    with pytest.raises(UserError, match=r"data: a worker process died .*: lower data.dataset.workers=1"):
        [next(batches) for _ in range(100)]


def workers_of(pid):
    """The processes that a process's forkserver has forked."""
    listed = subprocess.run(["ps", "-ww", "-eo", "pid,ppid,args"], capture_output=True, text=True, check=True).stdout
    rows = [line.split(None, 2) for line in listed.splitlines()[1:]]
    servers = {row[0] for row in rows if row[1] == str(pid) and "forkserver" in row[2]}
    return [int(row[0]) for row in rows if row[1] in servers]


def test_a_run_outlives_the_reader_of_what_it_prints(tmp_path):
    code = f"""
import sys
from ddpm_lightning.cli.pipes import outlive_readers
outlive_readers()
print("first", flush=True)
sys.stdin.readline()
for _ in range(3):
    print("second", flush=True)
    print("third", file=sys.stderr, flush=True)
open({str(tmp_path / "whole")!r}, "w").close()
"""
    both = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT)}, **both) as process:
        assert process.stdout.readline() == "first\n"
        process.stdout.close()
        process.stdin.write("\n")
        process.stdin.close()
        assert process.wait(60) == 0
    assert (tmp_path / "whole").exists()
