"""Hydra's other launchers and its search by Optuna, as a user starts them."""

import json
import sys

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from ddpm_lightning.runs import processes
from tests.conftest import ROOT, TINY, script
from tests.test_scripts import run_folders

PLAIN = [o for o in TINY if not o.startswith("callbacks.checkpoint.save_top_k")] + ["logger=none"]


def summaries(folder):
    return [json.loads((run / "summary.json").read_text()) for run in run_folders(folder, "sweep")]


@pytest.mark.slow
def test_joblib_runs_two_jobs_at_once(tmp_path):
    launcher = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "hydra.sweep.dir=sweep"]
    result = script("train.py", "-m", *PLAIN, "model.base_channels=8,12,7", *launcher, cwd=tmp_path)
    assert result.returncode == 1
    one, two = run_folders(tmp_path, "sweep")
    assert [one.name, two.name] == ["0_model.base_channels_8", "1_model.base_channels_12"]
    begun = [(run / ".hydra" / "config.yaml").stat().st_mtime for run in (one, two)]
    ended = [(run / "summary.json").stat().st_mtime for run in (one, two)]
    assert max(begun) < min(ended)
    assert [summary["status"] for summary in summaries(tmp_path)] == ["finished"] * 2
    assert "Job 2 of 3: model.base_channels=12" in result.stdout
    *_, head, failed = result.stderr.splitlines()  # by the job's own process, told to this one
    assert head == "error: 1 of the sweep's jobs failed, the others have ended well:"
    assert failed.startswith("  job 2 (model.base_channels=7): model: a level of 7 channels cannot be split")
    assert "model.base_channels=7`: model: a level of 7" in (tmp_path / "sweep" / "report.md").read_text()


@pytest.mark.slow
def test_submitit_runs_a_job_of_two_processes_and_goes_on_with_it(tmp_path):
    launcher = ["hydra/launcher=submitit_local", "hydra.sweep.dir=sweep", "trainer=ddp_cpu"]
    result = script("train.py", "-m", *PLAIN, "seed=3", *launcher, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    (summary,) = summaries(tmp_path)
    assert (summary["status"], summary["steps"], summary["processes"]) == ("finished", 4, 2)
    assert (tmp_path / "sweep" / "report.html").exists()
    (run,) = run_folders(tmp_path, "sweep")
    (run / "summary.json").unlink()
    for path in run.glob("checkpoints/*.ckpt"):
        if path.name != "step_0000002.ckpt":
            path.unlink()
    assert script("train.py", "-m", "resume=sweep", cwd=tmp_path).returncode == 0
    (again,) = summaries(tmp_path)
    assert (again["best"], again["final"]["train/loss"]) == (summary["best"], summary["final"]["train/loss"])


@pytest.mark.slow
def test_optuna_improves_on_its_first_trial_and_goes_on_with_those_that_it_has(tmp_path):
    search = [*PLAIN, "hydra.sweeper.n_trials=8", "hydra.sweep.dir=sweep", "callbacks.sample_grid=null"]
    result = script("train.py", "sweep=optuna", *search, "callbacks.trajectory=null", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    best = OmegaConf.load(tmp_path / "sweep" / "optimization_results.yaml")
    found = {int(run.name.partition("_")[0]): run for run in run_folders(tmp_path, "sweep")}
    losses = [json.loads((found[i] / "summary.json").read_text())["best"]["val/loss"] for i in range(8)]
    assert best.best_value == min(losses) < losses[0]
    assert 1e-4 <= best.best_params["optimizer.lr"] <= 1e-2
    (found[7] / "summary.json").unlink()
    result = script("train.py", "-m", "resume=sweep", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("which has ended before") == 7
    assert OmegaConf.load(tmp_path / "sweep" / "optimization_results.yaml") == best


@pytest.mark.slow
def test_a_search_whose_trials_all_fail_names_them(tmp_path):
    search = [*PLAIN, "hydra.sweeper.n_trials=2", "model.base_channels=7"]
    result = script("train.py", "sweep=optuna", *search, cwd=tmp_path)
    assert result.returncode == 1
    assert "Traceback" not in result.stderr.rpartition("error: all of")[2]
    *_, head, one, two = result.stderr.splitlines()
    assert head == "error: all of the sweep's jobs failed:"
    assert one.startswith("  job 0 (optimizer.lr=")
    assert two.endswith("change norm_groups, base_channels or channel_multipliers")


@pytest.mark.parametrize("launcher", ["basic", "joblib", "submitit_local", "submitit_slurm"])
@pytest.mark.parametrize("sweep", sorted(path.stem for path in (ROOT / "conf" / "sweep").glob("*.yaml")))
def test_presets_and_launchers_compose(launcher, sweep):
    name = "evaluate" if sweep == "samplers" else "train"
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        hydra = compose(name, [f"hydra/launcher={launcher}", f"sweep={sweep}"], return_hydra_config=True).hydra
    assert hydra.mode.name == "MULTIRUN"
    assert hydra.runtime.choices["hydra/launcher"] == launcher
    assert hydra.sweeper._target_.endswith("OptunaSweeper" if sweep == "optuna" else "BasicSweeper")


def test_a_launcher_that_is_not_installed(tmp_path):
    (tmp_path / "without.py").write_text(
        "import sys\n"
        "sys.modules['hydra_plugins'] = None\n"
        f"sys.argv[0] = {str(ROOT / 'train.py')!r}\n"
        "import runpy; runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    for choice, extra in (("hydra/launcher=joblib", "joblib"), ("hydra/sweeper=optuna", "optuna")):
        result = script(str(tmp_path / "without.py"), "-m", choice, cwd=tmp_path)
        assert result.returncode == 1
        assert result.stderr == f'error: {choice} is not installed: pip install "ddpm_lightning[{extra}]"\n'


def test_processes_side_by_side_share_the_gpus_evenly(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(sys.modules["tempfile"], "tempdir", str(tmp_path))
    processes.take_gpu()  # outside a sweep all are its own
    assert processes._gpu == []
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        HydraConfig.instance().set_config(compose("train", ["hydra/launcher=joblib"], return_hydra_config=True))
    taken = []
    for named in (None, None, None, "5,7", "5,7", "3"):
        monkeypatch.setattr(processes, "_gpu", [])
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if named:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
        processes.take_gpu()
        processes.take_gpu()  # a process keeps what it has
        taken.append((processes.os.environ["CUDA_VISIBLE_DEVICES"], processes._gpu))
    assert [gpu for gpu, _ in taken] == ["0", "1", "0", "5", "7", "3"]
    assert taken[-1][1] == []  # there was nothing to choose
    HydraConfig.instance().cfg = None
    for _, locks in taken:
        for lock in locks:
            lock.close()
