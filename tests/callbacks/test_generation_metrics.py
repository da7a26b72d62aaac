"""FID and KID during training are those of the averaged weights' samples, and decide which checkpoint is the best."""

import csv

import pytest
import torch
from hydra.utils import instantiate

from ddpm_lightning import runs
from ddpm_lightning.callbacks import GenerationMetrics
from ddpm_lightning.data.datasets import digits
from ddpm_lightning.images import SeededNoise, to_uint8
from ddpm_lightning.metrics import distances, features
from ddpm_lightning.samplers import DDIM
from tests.conftest import TINY, script, train_config
from tests.runs.test_resuming import interrupted

FID = (
    "callbacks=fid",
    "features.num_steps=5",
    "callbacks.generation_metrics.num_samples=30",
    "callbacks.generation_metrics.every_n_steps=4",
    "callbacks.generation_metrics.batch_size=8",
    "callbacks.sample_grid=null",
    "callbacks.trajectory=null",
)


def rows(folder, key):
    with (folder / "metrics.csv").open() as file:
        return {int(row["step"]): float(row[key]) for row in csv.DictReader(file) if row.get(key)}


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.setenv("DDPM_CACHE", str(tmp_path / "cache"))  # and not cache_dir, which a resume wants typed again

    def of(name, *overrides):
        return train_config(tmp_path / name, *FID, "trainer.max_steps=8", *overrides)

    return of


def real_and_fake(folder, count):
    """Features of the training images, and of as many samples of the run's averaged weights."""
    noise = SeededNoise(0, range(count))
    images = to_uint8(DDIM(4)(runs.load_denoiser(folder / "run"), noise.draw((1, 8, 8)), randn=noise))
    data = instantiate(runs.load_checkpoint(folder / "run")["config"]["data"])
    data.setup()
    model = features.classifier(digits, folder / "cache", num_steps=5)
    return features.extract(model, data.split("train").images), features.extract(model, images)


def test_the_values_are_those_of_the_averaged_weights_samples(config, tmp_path):
    runs.train(config("run"))
    fid, kid = rows(tmp_path / "run", "val/fid"), rows(tmp_path / "run", "val/kid")
    assert fid.keys() == {2, 4, 6, 8}  # measured at 2, 6 and 8
    assert fid[2] == fid[4] != fid[6] != fid[8]
    real, fake = real_and_fake(tmp_path, 30)
    assert fid[8] == pytest.approx(distances.frechet_distance(real, fake).value, rel=1e-3)
    assert kid[8] == pytest.approx(distances.kernel_distance(real, fake).value, rel=1e-3)


def test_the_best_checkpoint_is_the_one_with_the_least_fid(config, tmp_path):
    runs.train(config("run"))
    fid = rows(tmp_path / "run", "val/fid")
    best = torch.load(tmp_path / "run" / "checkpoints" / "best.ckpt", weights_only=True)
    assert best["global_step"] == min(fid, key=lambda step: (fid[step], step))


def test_a_run_that_goes_on_logs_the_same(config, tmp_path):
    runs.train(config("whole"))
    cut = interrupted(tmp_path / "whole", tmp_path / "cut", 4)
    runs.train(config("cut", f"resume='{cut}'"))
    for key in ("val/fid", "val/kid"):
        assert rows(cut, key) == rows(tmp_path / "whole", key)


@pytest.mark.slow
def test_two_processes_share_the_drawing(tmp_path):
    few = "callbacks.generation_metrics.num_samples=21"  # no multiple of two
    two = ["trainer=ddp_cpu", "trainer.devices=2", "logger=none", "hydra.run.dir=run"]
    done = script("train.py", *TINY, *FID, few, *two, cwd=tmp_path, env={"DDPM_CACHE": str(tmp_path / "cache")})
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    fid = rows(tmp_path / "run", "val/fid")
    assert fid.keys() == {2, 4}
    real, fake = real_and_fake(tmp_path, 21)
    assert fid[4] == pytest.approx(distances.frechet_distance(real, fake).value, rel=1e-3)


@pytest.mark.parametrize(
    "options",
    [{"num_samples": 9}, {"every_n_steps": 0}, {"batch_size": 0}, {"seed": -1}, {"guidance_scale": -1.0}],
)
def test_bad_settings_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        GenerationMetrics(None, DDIM(2), (1, 8, 8), **options)
