"""The seeds of a step's noise."""

import pytest
import torch

from ddpm_lightning.callbacks import Randomness
from tests.helpers.walk import Walk

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*treespec"),
    pytest.mark.filterwarnings("ignore:.*no `val_dataloader`"),
]


def test_ranks_draw_different_noise_and_share_what_they_must():
    draws, shared = [], []
    for rank in (0, 1):
        trainer, module = type("Fake", (), {"global_rank": rank})(), Walk()
        Randomness(0).on_train_batch_start(trainer, module, None, 0)
        draws.append(torch.rand(()).item())
        shared.append(torch.rand((), generator=module.shared_generator).item())
    assert draws[0] != draws[1]
    assert shared[0] == shared[1]
