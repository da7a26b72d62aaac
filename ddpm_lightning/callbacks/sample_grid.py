"""Sample grids during training."""

from collections import deque
from typing import Any

from torch import Tensor

from ddpm_lightning.callbacks.pictures import Pictures
from ddpm_lightning.images import grid, rows_by_label, to_uint8

__all__ = ["SampleGrid"]


class SampleGrid(Pictures):
    """A square of samples, or a row for each label; the ranks share the work. The arguments are those of `Pictures`."""

    name = "grid"

    def draw(self, pl_module: Any) -> Tensor:
        rank, world_size = pl_module.global_rank, pl_module.trainer.world_size
        share = -(-self.num_samples // world_size)
        mine = [(rank + k * world_size) % self.num_samples for k in range(share)]  # as many on each rank
        images = to_uint8(deque(self.steps(pl_module, mine), maxlen=1)[0].x)
        if world_size > 1:
            images = pl_module.all_gather(images).transpose(0, 1).flatten(0, 1)[: self.num_samples]
        return grid(images) if self.labels is None else rows_by_label(images.cpu(), len(self.labels))
