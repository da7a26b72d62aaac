"""Sweeps whose jobs fail in all the ways that they can, as a user starts them."""

import json
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from ddpm_lightning.cli.sweeps import planned
from ddpm_lightning.errors import UserError
from ddpm_lightning.run_folder import only_one_run
from ddpm_lightning.runs.resume_point import refuse_another
from tests.helpers.configs import ROOT, TINY, hydra_of, train_config
from tests.helpers.resuming import assert_same_run
from tests.helpers.scripts import run_folders, script, script_started

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
        assert "model.base_channels must be a multiple of norm_groups=4, got 7" in line
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
    assert "Job 4 of 4: seed=3, about " in result.stdout


def begun(folder, seed):
    """The folder of a job of which two checkpoints are written, and no end."""
    found = [path for path in folder.glob(f"*seed_{seed}*") if len([*path.glob("checkpoints/step_*.ckpt")]) > 1]
    return found[0] if found and not (found[0] / "summary.json").exists() else None


def test_a_sweep_that_was_killed_goes_on_and_ends_as_one_that_was_not(tmp_path):
    """Of jobs with two processes; the one below has jobs with one."""
    steps = ["trainer.max_steps=20", "trainer.val_check_interval=10", "trainer=ddp_cpu"]
    rare = [f"callbacks.{name}.every_n_steps=null" for name in ("sample_grid", "trajectory")]
    command = [*PLAIN, *steps, *rare, "seed=0,1", "logger=none"]
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    with script_started("train.py", "-m", *command, f"hydra.sweep.dir={killed}", cwd=tmp_path) as process:
        deadline = time.monotonic() + 200
        while begun(killed, 1) is None:
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)
    assert [path.parent.name for path in sorted(killed.glob("*/summary.json"))] == ["0_seed_0"]
    first = {path: path.stat().st_mtime_ns for path in killed.glob("0_seed_0/**/*") if ".hydra" not in path.parts}

    result = script("train.py", "-m", "resume=killed", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "Job 1 of 2: seed=0, already finished" in result.stdout
    assert first == {path: path.stat().st_mtime_ns for path in first if path.name != ".lock"}
    assert script("train.py", "-m", *command, f"hydra.sweep.dir={whole}", cwd=tmp_path).returncode == 0
    for seed in range(2):
        assert_same_run(killed / f"{seed}_seed_{seed}", whole / f"{seed}_seed_{seed}")
    assert "# One setting × 2 seeds on digits\n" in (killed / "report.md").read_text()

    result = script("train.py", "resume=killed", cwd=tmp_path)  # nothing is left to do
    assert result.returncode == 0
    assert result.stdout.count("already finished") == 2


def test_a_sweep_s_folder_is_its_own_and_what_had_not_begun_to_be_saved_begins_anew(tmp_path):
    """In a folder whose name Hydra would read, and killed before the first checkpoint, with rates that were typed."""
    here = tmp_path / "it's = a"
    here.mkdir()
    command = ["train.py", "-m", *PLAIN, "seed=0,1", "logger=none", "optimizer.lr=1e-3", "hydra.sweep.dir=sweep"]
    assert script(*command, "trainer=ddp_cpu", cwd=here).returncode == 0
    sweep = here / "sweep"
    begun, whole = sweep / "1_seed_1", tmp_path / "whole"
    shutil.copytree(begun, whole)
    before = {path: path.read_bytes() for path in sweep.glob("**/*") if path.is_file()}

    with only_one_run(sweep):
        result = script("train.py", "-m", "resume=sweep", cwd=here)
        assert (result.returncode, result.stderr) == (
            1,
            "error: sweep is used by another run: wait until it ends, or choose another folder\n",
        )
    for typed in ("optimizer.lr=0.5", "seed=1,2"):
        result = script("train.py", "-m", "resume=sweep", typed, cwd=here)
        assert result.returncode == 1
        assert result.stderr.startswith(
            "error: hydra.sweep.dir=sweep holds another sweep, started with model.norm_groups=4"
        )
        assert "resume that one with -m resume=sweep and nothing else" in result.stderr
    assert before == {path: path.read_bytes() for path in sweep.glob("**/*") if path.is_file()}

    shutil.rmtree(begun / "checkpoints")
    (begun / "summary.json").unlink()
    result = script("train.py", "-m", f"resume={sweep}", cwd=here)
    assert result.returncode == 0, result.stderr
    assert "no checkpoint was saved yet; the run starts from the beginning" in result.stdout
    assert_same_run(begun, whole)
    for path, data in before.items():
        if "0_seed_0" in path.parts and ".hydra" not in path.parts:
            assert path.read_bytes() == data


def test_a_config_that_has_changed_is_not_taken_for_the_old_one(tmp_path):
    OmegaConf.save(train_config(tmp_path, "trainer.max_steps=8"), tmp_path / "config.yaml", resolve=True)
    refuse_another(train_config(tmp_path, "trainer.max_steps=8", "optimized_metric=val/bits_per_dim"), tmp_path)
    with pytest.raises(UserError, match=r"holds a run with trainer.max_steps=8, not 4: resume the sweep unchanged"):
        refuse_another(train_config(tmp_path), tmp_path)


def test_samples_that_cannot_be_drawn_end_a_sweep_of_them_with_an_error(tmp_path):
    result = script("sample.py", "-m", "ckpt_path=nowhere.ckpt", "seed=0,1", cwd=tmp_path)
    assert result.returncode == 1
    assert "error: all of the sweep's jobs failed:\n  job 0 (seed=0): " in result.stderr


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["-m", "resume=auto"], "resume=auto found no unfinished sweep: start one without resume=auto"),
        (["-m", "resume=nowhere"], "resume must be the folder of a sweep, got nowhere, which does not exist"),
        (["sweep=samplers"], "sweep=samplers belongs to another program: run `python evaluate.py sweep=samplers`"),
        (["sweep=schedule"], "sweep=schedule does not exist: did you mean sweep=schedules?"),
        (["-m", "schedule=linear,cosin"], "schedule=cosin does not exist: did you mean schedule=cosine?"),
        (["-m", "optimizer.lr=interval(0,1)"], "optimizer.lr=interval(0,1): an interval requires sweep=optuna"),
        (
            ["sweep=optuna", "optimizer.lr=interval(2,1)"],
            "optimizer.lr=interval(2,1): an interval requires sweep=optuna, with its lower bound first",
        ),
        (["sweep=optuna", "hydra.sweeper.n_trials=0"], "hydra.sweeper.n_trials must be a positive integer, got 0"),
        (
            ["sweep=optuna", "hydra.sweeper.direction=up"],
            "hydra.sweeper.direction must be minimize or maximize, got 'up'",
        ),
        (
            ["-m", "hydra/launcher=joblib", "hydra.launcher.n_jobs=0"],
            "hydra.launcher.n_jobs must be an integer from 1 to ",
        ),
    ],
)
def test_what_is_no_sweep_is_refused(tmp_path, arguments, sentence):
    result = script("train.py", *arguments, cwd=tmp_path)
    assert result.returncode == 1
    assert result.stderr.startswith(f"error: {sentence}")
    assert [*tmp_path.iterdir()] == []


def test_the_samplers_are_swept_by_evaluate(tmp_path):
    result = script("evaluate.py", "sweep=schedules", cwd=tmp_path)
    assert result.stderr == "error: sweep=schedules belongs to another program: run `python train.py sweep=schedules`\n"
    assert planned(hydra_of("sweep=samplers", name="evaluate")) == (["sampler", "sampler.num_steps"], 18)


def test_a_damaged_record_is_named(tmp_path):
    (tmp_path / "multirun.yaml").write_text("{broken")
    for arguments in (["-m", f"resume={tmp_path}"], ["-m", "seed=0,1", f"hydra.sweep.dir={tmp_path}"]):
        (tmp_path / "0_job").mkdir(exist_ok=True)
        (tmp_path / "0_job" / "config.yaml").write_text("{}")
        result = script("train.py", *arguments, cwd=tmp_path.parent)
        assert result.returncode == 1
        said = f"error: {tmp_path}/multirun.yaml must be the record of a sweep"
        assert result.stderr.startswith(said)


def test_a_logger_that_is_refused_leaves_no_folder(tmp_path):
    result = script("train.py", *PLAIN, "logger.wandb.log_model=perhaps", cwd=tmp_path)
    assert result.stderr == "error: logger.wandb.log_model must be true, false or all, got 'perhaps'\n"
    assert [*tmp_path.iterdir()] == []
