"""Two steps of every experiment that trains in minutes."""

import numpy as np
import pytest

from tests.helpers.configs import TINY, TINY_POINTS, choices, train_config
from tests.helpers.datasets import write_fashion_mnist
from tests.helpers.experiments import LONG


@pytest.mark.parametrize("choice", sorted({*choices("experiment")} - LONG))
def test_experiments_are_trained_for_two_steps(choice, tmp_path):
    from ddpm_lightning import runs

    data, tiny = [], TINY
    if choice in ("two_moons", "swiss_roll", "checkerboard"):
        tiny = [o for o in TINY_POINTS if not o.startswith(("data=", "model=", "callbacks="))]
    if choice == "lecture_digits":
        tiny = [o for o in TINY if not o.startswith("callbacks.raw_grid")]  # it has no second set of weights
    if choice == "fashion_mnist":
        write_fashion_mnist(tmp_path / "set", np.zeros((40, 28, 28)), np.arange(40) % 10)
        data = [f"data.root={tmp_path / 'set'}"]
    runs.train(train_config(tmp_path / "run", f"experiment={choice}", *data, "trainer.max_steps=2", tiny=tiny))
    assert (tmp_path / "run" / "summary.json").exists()
