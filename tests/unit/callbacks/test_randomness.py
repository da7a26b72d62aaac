"""The seeds of a step's noise."""

import pytest
import torch

from ddpm_lightning.callbacks import Randomness
from ddpm_lightning.seeds import derive
from tests.helpers.walk import Walk

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*treespec"),
    pytest.mark.filterwarnings("ignore:.*no `val_dataloader`"),
]


def started(rank=0, step=0, batch_idx=0, batches=2):
    given = {"global_rank": rank, "accumulate_grad_batches": batches}
    trainer, module, randomness = type("Fake", (), given)(), Walk(), Randomness(0)
    randomness.load_state_dict({"steps": step})
    for index in range(batch_idx + 1):
        randomness.on_train_batch_start(trainer, module, None, index)
    drawn = torch.rand(()).item()
    module.before_dropout()
    return drawn, torch.rand(()).item()


def test_processes_and_batches_of_a_step_draw_alike_and_drop_differently():
    found = [started(rank=rank, batch_idx=batch_idx) for rank in (0, 1) for batch_idx in (0, 1)]
    assert len({drawn for drawn, _ in found}) == 1
    assert len({dropped for _, dropped in found}) == 4
    assert started(step=1) not in found
    assert started(step=1) == started(batch_idx=2)


def test_one_process_draws_what_it_always_drew():
    """The bits of runs of one process, with one batch a step, without dropout, stay from version to version."""
    assert started(step=3, batches=1)[0] == torch.rand(
        (), generator=torch.Generator().manual_seed(derive(0, "step", 3, 0))
    )


def test_a_checkpoint_of_an_earlier_version_counts_batches():
    checkpoint = {"callbacks": {"Randomness": {"batches": 12}}, "config": {"trainer": {"accumulate_grad_batches": 3}}}
    Randomness(0).on_load_checkpoint(None, None, checkpoint)
    assert checkpoint["callbacks"]["Randomness"] == {"steps": 4}
