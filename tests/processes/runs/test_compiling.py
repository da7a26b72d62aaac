"""torch.compile, whose compilers are processes of their own, leaves checkpoints as they are."""

import pytest
import torch

from ddpm_lightning import runs
from tests.helpers.configs import TINY, train_config


def weights(folder):
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning", "ignore:.*treespec"
)
def test_compiled_and_not_compiled_checkpoints_are_the_same(tmp_path):
    tiny = [o for o in TINY if not o.startswith("model.")]
    small = ["model=dit_tiny", "model.hidden_size=16", "model.depth=2", "model.num_heads=2"]
    steps = [*small, "trainer.max_steps=2", "callbacks.sample_grid=null", "callbacks.trajectory=null"]

    def train(name, *overrides):
        runs.train(train_config(tmp_path / name, *steps, *overrides, tiny=tiny))
        return weights(tmp_path / name)

    compiled, plain = train("compiled", "compile=true"), train("plain")
    assert compiled.keys() == plain.keys()
    for key, value in plain.items():
        torch.testing.assert_close(compiled[key], value, rtol=1e-3, atol=1e-4)
    train("again", "compile=true", f"init_from={tmp_path / 'plain'}")
    train("and_back", f"init_from={tmp_path / 'again'}")
