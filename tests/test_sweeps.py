"""Sweeps whose jobs fail in all the ways that they can, as a user starts them."""

import json
import random
from pathlib import Path

import pytest

from tests.conftest import ROOT, TINY, script
from tests.test_scripts import run_folders

PLAIN = [o for o in TINY if not o.startswith(("model.base_channels", "callbacks.checkpoint.save_top_k"))]


def processes_that_name(folder):
    """The command lines of all processes that hold the folder's name or work in it."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            if str(folder) in f"{command} {(process / 'cwd').readlink()}":
                found.append(command)
        except OSError:
            continue  # it has ended meanwhile
    return found


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_failed_job_is_named_and_the_others_finish(tmp_path, processes):
    """Rates drawn beforehand, since Hydra's own sweeper knows lists only; every job with 7 channels cannot be built."""
    draw = random.Random(processes)
    rates = [f"{10 ** draw.uniform(-4, -3):.3g}" for _ in range(2)]
    overrides = [f"optimizer.lr={','.join(rates)}", "model.base_channels=8,7", "trainer=ddp_cpu", "logger=none"]
    result = script("train.py", "-m", *PLAIN, *overrides, f"trainer.devices={processes}", cwd=tmp_path)
    assert result.returncode == 1
    folders = run_folders(tmp_path, "multirun")
    assert [folder.name[0] for folder in folders] == ["0", "2"]
    for folder, rate in zip(folders, rates, strict=True):
        summary = json.loads((folder / "summary.json").read_text())
        assert (summary["status"], summary["steps"], summary["processes"]) == ("finished", 4, processes)
        assert f"optimizer.lr={rate}" in summary["overrides"]
    head, *named = result.stderr[result.stderr.rindex("error: ") :].splitlines()
    assert head.startswith("error: 2 of the sweep's jobs failed")
    assert len(named) == 2
    for line, number, rate in zip(named, (1, 3), rates, strict=True):
        assert line.startswith(f"  job {number} (")
        assert f"optimizer.lr={rate} " in line
        assert "model.base_channels=7" in line
        assert "a level of 7 channels cannot be split into norm_groups=4: change norm_groups" in line
    assert "Traceback" not in result.stderr
    assert processes_that_name(tmp_path) == []


STUB = f"""
import runpy
import sys

from ddpm_lightning import runs


def train(config):
    if config.seed == 1:
        raise KeyError("lost")
    if config.seed == 2:
        sys.exit(7)
    print("done:", config.seed)


runs.train = train
runpy.run_path({str(ROOT / "train.py")!r}, run_name="__main__")
"""


def test_neither_an_unforeseen_error_nor_an_exit_ends_a_sweep(tmp_path):
    (tmp_path / "stub.py").write_text(STUB)
    result = script(str(tmp_path / "stub.py"), "-m", "seed=0,1,2,3", cwd=tmp_path)
    assert result.returncode == 1
    assert "done: 0" in result.stdout
    assert "done: 3" in result.stdout
    assert "in train\n    raise KeyError" in result.stderr  # where it happened: nobody foresaw it
    *_, head, one, two = result.stderr.splitlines()
    assert head.startswith("error: 2 of the sweep's jobs failed")
    assert (one, two) == ("  job 1 (seed=1): KeyError: 'lost'", "  job 2 (seed=2): exit code 7")
