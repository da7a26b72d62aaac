"""What a sweep plans, and what ends it."""

import sys

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import open_dict

from ddpm_lightning.cli.entry import user_errors
from ddpm_lightning.cli.sweeps import Jobs, planned
from tests.helpers.configs import ROOT, hydra_of


def test_a_launcher_s_end_of_time_passes_through(tmp_path, monkeypatch):
    """submitit asks for the job once more, and ends this one by an exit."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        overrides = ["hydra/launcher=submitit_local", f"hydra.sweep.dir={tmp_path}", "sweep=schedules"]
        config = compose("train", overrides, return_hydra_config=True)
    with open_dict(config):
        config.hydra.job.num = 3
        config.hydra.runtime.output_dir = str(tmp_path / "3_job")
    notes = tmp_path / "failed_jobs"
    notes.mkdir()
    (notes / "3.json").write_text("{}")
    monkeypatch.setenv("DDPM_LAUNCH", "{}")
    HydraConfig.instance().set_config(config)
    try:
        Jobs().on_job_start(config)
        with pytest.raises(SystemExit, match="144"), user_errors({}):
            sys.exit(144)
    finally:
        HydraConfig.instance().cfg = None
    assert [*notes.iterdir()] == []  # nor what an earlier try left


@pytest.mark.parametrize(
    ("typed", "keys", "jobs"),
    [
        (["sweep=schedules"], ["schedule", "seed"], 9),
        (["sweep=schedules", "seed=0,1"], ["schedule", "seed"], 6),
        (["sweep=schedules", "seed=4"], ["schedule"], 3),
        (["sweep=predictions", "+schedule.more=range(0,4)"], ["prediction", "seed", "schedule.more"], 36),
        (["seed=3", "optimizer.lr=choice(1,2,3)"], ["optimizer.lr"], 3),
        (["sweep=optuna"], ["optimizer.lr", "callbacks.ema.decay"], 20),
        (["sweep=optuna", "hydra.sweeper.n_trials=5", "model.dropout=interval(0,1)"],
         ["optimizer.lr", "callbacks.ema.decay", "model.dropout"], 5),
    ],
)  # fmt: skip
def test_what_a_sweep_plans(typed, keys, jobs):
    assert planned(hydra_of(*typed)) == (keys, jobs)
