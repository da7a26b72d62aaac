"""The name that all tasks of a cluster's job give their run."""

import re

import pytest

from ddpm_lightning.cli import launch
from ddpm_lightning.errors import UserError


def test_slurm_gives_all_tasks_one_name(monkeypatch):
    slurm = {"SLURM_NTASKS": "4", "SLURM_PROCID": "3", "SLURM_JOB_ID": "17", "SLURM_STEP_NUM_TASKS": "4"}
    for key, value in slurm.items():
        monkeypatch.setenv(key, value)
    assert launch.run_name() == "slurm_17"
    sweep = ["train.py", "-m", "seed=0,1"]
    with pytest.raises(UserError, match="starts its jobs' processes itself"):
        launch.check_sweep_allowed(sweep)
    monkeypatch.delenv("SLURM_STEP_NUM_TASKS")  # as in a batch script, without srun
    assert re.fullmatch(r"\d{4}-\d\d-\d\d/\d\d-\d\d-\d\d-\d{6}", launch.run_name())
    launch.check_sweep_allowed(sweep)
