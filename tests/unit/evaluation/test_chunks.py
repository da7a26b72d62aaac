"""Results in chunks, which many processes write."""

import pytest
import torch

from ddpm_lightning.errors import UserError
from ddpm_lightning.evaluation.chunks import Chunks
from ddpm_lightning.runs.process_group import ALONE, ProcessGroup


def test_a_shard_that_another_process_wrote_elsewhere_is_named(tmp_path):
    chunks = Chunks(tmp_path, 5, 2)
    chunks.compute(lambda items: {"x": torch.arange(items.start, items.stop)}, ALONE)
    assert chunks.read()["x"].tolist() == [0, 1, 2, 3, 4]
    (tmp_path / "000002-000003.npz").unlink()
    assert chunks.missing(ProcessGroup(rank=1, world_size=2)) == [range(2, 4)]
    assert chunks.missing(ProcessGroup(rank=0, world_size=2)) == []
    with pytest.raises(UserError, match=r"000002-000003\.npz is missing: let all processes share one folder"):
        chunks.read()
