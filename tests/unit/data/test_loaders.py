"""Where a loader goes on when the batch size has changed."""

import pytest
import torch

from ddpm_lightning.data.loaders import TrainLoader
from ddpm_lightning.data.source import Batch, Share

pytestmark = pytest.mark.filterwarnings("ignore:.*treespec", "ignore:The number of training batches")


@pytest.mark.parametrize("images", [48, 40])
def test_batch_size_and_processes_keep_the_position_in_images(images):
    """Trained on 48 images of 100 with one process and a batch of 16 or 8; then two processes and a batch of 5 see the rest."""
    data = Batch(torch.arange(100).byte().reshape(-1, 1, 1, 1), None, torch.arange(100))
    first = TrainLoader(data, Share(images // 4), seed=0)
    seen = [batch.ids for _, batch in zip(range(4), first, strict=False)]
    ranks = [TrainLoader(data, Share(5, r, 2), seed=0) for r in (0, 1)]
    for loader in ranks:
        loader.load_state_dict(first.state_dict())
    turns = [iter(loader) for loader in ranks]
    while len(torch.cat(seen)) < 100:
        seen += [next(turn).ids for turn in turns]
    assert sorted(torch.cat(seen)[:100].tolist()) == list(range(100))
    assert ranks[0].state_dict() == ranks[1].state_dict() == {"images": len(torch.cat(seen))}
