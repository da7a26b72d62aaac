"""FID during training, shared out over processes."""

import pytest

from ddpm_lightning.metrics import distances
from tests.helpers.configs import TINY
from tests.helpers.generation_metrics import FID, real_and_fake, rows
from tests.helpers.scripts import script


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
