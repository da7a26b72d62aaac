"""Many processes go back together where the numbers of one are NaN."""

import pytest

from tests.helpers.configs import NO_FIGURES, TINY
from tests.helpers.loss_guard import ROLLBACK, final
from tests.helpers.resuming import assert_equal, state
from tests.helpers.scripts import script

pytestmark = pytest.mark.filterwarnings("ignore:.*treespec", "ignore:The number of training batches")

PATCH = """
import math
from ddpm_lightning.cli.train import main
from ddpm_lightning.module import DDPM
step = DDPM.training_step
def broken(self, batch, batch_idx):
    outputs = step(self, batch, batch_idx)
    randomness = next(c for c in self.trainer.callbacks if type(c).__name__ == "Randomness")
    if self.global_rank == 1 and randomness._steps == 5:
        outputs = {key: value * math.nan if key != "t" else value for key, value in outputs.items()}
    return outputs
DDPM.training_step = broken
main()
"""


def test_all_processes_go_back_where_one_of_them_diverges(tmp_path):
    (tmp_path / "patched.py").write_text(PATCH)  # which each of the processes runs
    plain = [text for text in TINY if not text.startswith(tuple(name.removesuffix("=null") for name in NO_FIGURES))]
    options = [*plain, *ROLLBACK, "trainer=ddp_cpu", "logger=none", "data.batch_size=8"]
    for name in ("one", "two"):
        result = script(str(tmp_path / "patched.py"), *options, f"hydra.run.dir={name}", cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        assert result.stdout.count("rolling back to the checkpoint of step 4 and skipping the batches in between") == 1
    held = state(tmp_path / "one")
    assert (held["global_step"], held["rollbacks"]) == (8, 1)
    assert held["loops"]["fit_loop"]["state_dict"]["combined_loader"] == [{"images": 9 * 16}]
    assert_equal(final(tmp_path / "one"), final(tmp_path / "two"))
