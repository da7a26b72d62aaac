"""A run that others are compared with."""

import pytest

from ddpm_lightning import runs
from tests.helpers.configs import train_config


@pytest.fixture(scope="module", params=[1, 2], ids=["each", "accumulated"])
def whole(request, tmp_path_factory):
    """Ten steps over three of Lightning's epochs, a checkpoint at each, validations at every second batch."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    runs.train(
        train_config(
            folder,
            f"trainer.accumulate_grad_batches={request.param}",
            "data.batch_size=200",
            f"trainer.val_check_interval={2 * request.param}",
            "trainer.max_steps=10",
            "trainer.log_every_n_steps=3",
            "callbacks.checkpoint.every_n_train_steps=1",
            "callbacks.trajectory=null",
            "lr_scheduler.total_iters=7",
        )
    )
    return folder
