"""FID and KID during training are those of the averaged weights' samples, and decide which checkpoint is the best."""

import pytest
import torch

from ddpm_lightning import runs
from ddpm_lightning.metrics import distances
from tests.helpers.configs import train_config
from tests.helpers.generation_metrics import FID, real_and_fake, rows
from tests.helpers.resuming import interrupted


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.setenv("DDPM_CACHE", str(tmp_path / "cache"))  # and not cache_dir, which a resume wants typed again

    def of(name, *overrides):
        return train_config(tmp_path / name, *FID, "trainer.max_steps=8", *overrides)

    return of


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
