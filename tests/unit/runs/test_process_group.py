"""Which processes wait for each other."""

from ddpm_lightning.runs.process_group import ALONE, join_process_group


def test_a_batch_script_without_srun_samples_alone(monkeypatch):
    slurm = {"SLURM_NTASKS": "4", "SLURM_NTASKS_PER_NODE": "4", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
    for key, value in {**slurm, "SLURM_JOB_ID": "17", "SLURM_JOB_NAME": "job"}.items():
        monkeypatch.setenv(key, value)
    monkeypatch.delenv("SLURM_STEP_NUM_TASKS", raising=False)
    with join_process_group() as group:  # and does not wait for three tasks that nobody started
        assert group == ALONE
