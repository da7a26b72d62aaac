"""torch.compile, whose compilers are processes of their own, leaves checkpoints as they are."""

import pytest
import torch

from ddpm_lightning import runs
from tests.helpers.configs import train_config


def weights(folder):
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning", "ignore:.*treespec"
)
def test_compiled_and_not_compiled_checkpoints_are_the_same(tmp_path):
    compiled, plain = tmp_path / "compiled", tmp_path / "plain"
    steps = ["trainer.max_steps=2", "callbacks.sample_grid=null", "callbacks.trajectory=null"]
    runs.train(train_config(compiled, "compile=true", "model.fast_cpu=false", *steps))
    runs.train(train_config(plain, *steps))
    assert weights(compiled).keys() == weights(plain).keys()
    for key, value in weights(plain).items():
        torch.testing.assert_close(weights(compiled)[key], value, rtol=1e-3, atol=1e-4)
    again = tmp_path / "again"
    runs.train(train_config(again, "compile=true", "model.fast_cpu=false", f"init_from={plain}", *steps))
    runs.train(train_config(tmp_path / "and_back", f"init_from={again}", *steps))
