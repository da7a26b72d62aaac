"""Pictures of a run of two processes."""

import pytest

from tests.helpers.configs import WHOLE
from tests.helpers.log_snr import errors_of_the_last, logged
from tests.helpers.scripts import script

pytestmark = pytest.mark.filterwarnings("ignore:.*treespec", "ignore:The number of training batches")


def test_two_ranks_share_the_curve(tmp_path):
    done = script("train.py", *WHOLE, "callbacks.log_snr.num_images=5", "trainer=ddp_cpu", "trainer.devices=2",
                  "logger=none", "hydra.run.dir=run", cwd=tmp_path)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert logged(tmp_path / "run")[1] == pytest.approx(errors_of_the_last(tmp_path / "run", 5), rel=1e-5)
