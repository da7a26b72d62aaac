"""Streams in processes of their own, and what is left of them."""

import json
import os
import signal
import subprocess
import sys
from itertools import islice

import pytest
import torch

from tests.helpers.configs import ROOT, TINY
from tests.helpers.scripts import script, script_started, until
from tests.helpers.shards import SHORT, endless, loader


@pytest.mark.parametrize("change", [{"world_size": 2}, {"segments": 2}, {"batch_size": 4}])
def test_in_another_order_it_resumes_with_the_next_pass(shards, caplog, change):
    """No image comes twice in a pass, and the next one is whole, in the order that it has from its beginning."""
    first = loader(shards, batch_size=5)
    for _ in islice(endless(first), 5):  # 25 of 40 images
        pass
    others = {"batch_size": 5, **change}
    ranks = [loader(shards, rank=r, **others) for r in range(others.get("world_size", 1))]
    for one in ranks:
        one.load_state_dict(first.state_dict())
    assert caplog.text.count("the stream resumes with its next pass, number 2") == 1
    turns = [endless(one) for one in ranks]
    batches = 40 // (others["batch_size"] * len(ranks))
    seen = [i for _ in range(batches) for turn in turns for i in next(turn).ids.tolist()]
    assert sorted(seen) == list(range(40))
    assert ranks[0].state_dict()["images"] == 25 + 40
    again = loader(shards, rank=0, **others)
    again.load_state_dict(ranks[0].state_dict())  # in the same order: nothing is left out
    assert torch.equal(next(iter(again)).ids, next(turns[0]).ids)
    assert caplog.text.count("the stream resumes") == 1


def test_two_processes_train_on_a_stream(shards, tmp_path):
    run = ["hydra.run.dir=run", "trainer=ddp_cpu", "trainer.devices=2", "logger=none", f"data.root={shards}"]
    result = script("train.py", *TINY, *SHORT, *run, "trainer.max_steps=10", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["steps"] == 10


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_workers_end_with_their_run_and_not_before_it(shards, tmp_path, number):
    run = ["hydra.run.dir=run", "logger=none", f"data.root={shards}", "trainer.max_steps=100000"]
    command = [*TINY, *SHORT, *run, "callbacks.checkpoint.every_n_train_steps=50"]
    command += [f"callbacks.{name}.every_n_steps=1000" for name in ("sample_grid", "trajectory")]
    with script_started("train.py", *command, cwd=tmp_path) as process:
        metrics = tmp_path / "run" / "metrics.csv"
        until(lambda: metrics.exists() and len(metrics.read_text().splitlines()) > 2)
        # as SLURM does, to all at once; the run's last step wants a batch of its workers
        os.killpg(process.pid, number) if number == signal.SIGTERM else os.kill(process.pid, number)
        assert process.wait(60) == (128 + number if number == signal.SIGTERM else -number)
        until(lambda: not others(process.pid))
    if number == signal.SIGTERM:
        assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "interrupted"


def others(group):
    """The processes of a group that are alive."""
    listed = subprocess.run(["ps", "-eo", "pgid,stat"], capture_output=True, text=True, check=True).stdout.splitlines()
    return [line for line in listed if line.split()[0] == str(group) and "Z" not in line.split()[1]]


FIRST = """
import signal
from ddpm_lightning.data.streams import _processes
from ddpm_lightning.errors import STOP_SIGNALS

if __name__ == "__main__":
    context, before = _processes(), signal.pthread_sigmask(signal.SIG_BLOCK, [])
    assert not {*STOP_SIGNALS} & before  # this process takes its signals
    pool = context.Pool(1)
    held = pool.apply(signal.pthread_sigmask, (signal.SIG_BLOCK, []))
    pool.close()  # not terminate, which sends one of these signals, and waits
    pool.join()
    assert {*STOP_SIGNALS} <= held, held
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no sigtimedwait")
def test_no_signal_ends_a_worker_before_it_knows_what_to_do_with_it(tmp_path):
    (tmp_path / "first.py").write_text(FIRST)
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "first.py"], cwd=tmp_path, env=env, check=True, timeout=120)
