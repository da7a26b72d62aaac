"""Hydra's other launchers and its search by Optuna, as a user starts them."""

import json

from omegaconf import OmegaConf

from tests.helpers.configs import ROOT, TINY
from tests.helpers.scripts import run_folders, script

PLAIN = [o for o in TINY if not o.startswith("callbacks.checkpoint.save_top_k")] + ["logger=none"]


def summaries(folder):
    return [json.loads((run / "summary.json").read_text()) for run in run_folders(folder, "sweep")]


def test_joblib_runs_two_jobs_at_once(tmp_path):
    launcher = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "hydra.sweep.dir=sweep"]
    result = script("train.py", "-m", *PLAIN, "model.base_channels=8,12,7", *launcher, cwd=tmp_path, fresh=True)
    assert result.returncode == 1
    one, two = run_folders(tmp_path, "sweep")
    assert [one.name, two.name] == ["0_model.base_channels_8", "1_model.base_channels_12"]
    begun = [(run / ".hydra" / "config.yaml").stat().st_mtime for run in (one, two)]
    ended = [(run / "summary.json").stat().st_mtime for run in (one, two)]
    assert max(begun) < min(ended)
    assert [summary["status"] for summary in summaries(tmp_path)] == ["finished"] * 2
    assert "Job 2 of 3: model.base_channels=12" in result.stdout
    *_, head, failed = result.stderr.splitlines()  # by the job's own process, told to this one
    assert head == "error: 1 of the sweep's jobs failed; the others finished:"
    assert failed.startswith("  job 2 (model.base_channels=7): model.base_channels must be a multiple of")
    assert (
        "model.base_channels=7`: model.base_channels must be a multiple of"
        in (tmp_path / "sweep" / "report.md").read_text()
    )


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
    assert result.stdout.count("already finished") == 7
    assert OmegaConf.load(tmp_path / "sweep" / "optimization_results.yaml") == best


def test_a_search_whose_trials_all_fail_names_them(tmp_path):
    search = [*PLAIN, "hydra.sweeper.n_trials=2", "model.base_channels=7"]
    result = script("train.py", "sweep=optuna", *search, cwd=tmp_path)
    assert result.returncode == 1
    assert "Traceback" not in result.stderr.rpartition("error: all of")[2]
    *_, head, one, two = result.stderr.splitlines()
    assert head == "error: all of the sweep's jobs failed:"
    assert one.startswith("  job 0 (optimizer.lr=")
    assert two.endswith("model.base_channels must be a multiple of norm_groups=4, got 7")


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
