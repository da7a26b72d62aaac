"""A run that was made before classes moved is sampled after it."""

import csv
import shutil
from pathlib import Path

import pytest

from ddpm_lightning import load_denoiser, runs
from ddpm_lightning.evaluation.pipeline import evaluate
from tests.helpers.configs import ROOT, config_of

BEFORE = ROOT / "tests" / "fixtures" / "run_before_the_wings"


@pytest.fixture
def folder(tmp_path):
    return Path(shutil.copytree(BEFORE, tmp_path / "run"))


def test_its_checkpoint_is_sampled(folder, tmp_path):
    denoiser = load_denoiser(folder / "checkpoints" / "last.ckpt")
    assert sum(p.numel() for p in denoiser.parameters()) == 2_977
    runs.sample(
        config_of(
            f"ckpt_path={folder}", "num_samples=4", "sampler.num_steps=3", f"out_dir={tmp_path}/out", name="sample"
        )
    )
    assert (tmp_path / "out" / "grid.png").exists()


def test_its_evaluation_is_kept_under_the_same_names(folder, tmp_path):
    given = ("num_samples=10", "sampler.num_steps=2", "bits_images=1", "features.num_steps=1", "device=cpu")
    out = evaluate(config_of(*given, f"ckpt_path='{folder}'", f"cache_dir='{tmp_path}'", name="evaluate"))
    assert out.name == "ddim_2_dedab9e0d604"
    assert (out / "samples_dedab9e0d604_seed0" / "000000-000009.npz").exists()
    assert (folder / "evaluations" / "bits_epsilon_small_50dfe0c60361" / "000000-000000.npz").exists()


def test_a_run_of_0_1_0_is_sampled_and_goes_on(tmp_path):
    """Labels, importance draws and an average: killed after two steps of four, of which metrics.csv has the losses."""
    folder = Path(shutil.copytree(ROOT / "tests" / "fixtures" / "run_of_0_1_0", tmp_path / "run"))
    with (folder / "metrics.csv").open(newline="") as file:
        before = [float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]
    assert len(before) == 4
    assert load_denoiser(folder / "checkpoints" / "step_0000002.ckpt").num_classes == 10
    drawing = ("num_samples=4", "sampler.num_steps=3", "labels=[7]", "guidance_scale=2", f"out_dir={tmp_path}/out")
    runs.sample(config_of(f"ckpt_path={folder}", *drawing, name="sample"))
    runs.train(config_of(f"resume={folder}", "run_dir=unused"))
    with (folder / "metrics.csv").open(newline="") as file:
        after = [float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]
    assert after == pytest.approx(before, rel=1e-5)
