"""Samples beside the training images that are nearest to them."""

from collections import deque
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from ddpm_lightning.callbacks.pictures import Pictures
from ddpm_lightning.data.loaders import InMemory
from ddpm_lightning.images import grid, to_uint8
from ddpm_lightning.ranges import is_whole

__all__ = ["Neighbours", "nearest"]


class Neighbours(Pictures):
    """Each sample in a row with its nearest training images in L2 distance of the pixels: a copy would have itself beside it.

    Nothing is drawn for a stream, whose images are not in memory.

    Args:
        num_neighbours: training images in a row; the others are those of `Pictures`.
    """

    name = "neighbours"

    def __init__(self, *args: Any, num_neighbours: int = 5, **kwargs: Any):
        super().__init__(*args, **kwargs)
        if not is_whole(num_neighbours, "[1, 100]"):
            raise ValueError(f"num_neighbours={num_neighbours} must be 1 to 100")
        self.num_neighbours = num_neighbours

    def look(self, trainer: Trainer, pl_module: Any) -> None:
        if isinstance(trainer.datamodule.source, InMemory):
            super().look(trainer, pl_module)

    def draw(self, pl_module: Any) -> Tensor:
        samples = to_uint8(deque(self.steps(pl_module), maxlen=1)[0].x).cpu()
        images = pl_module.trainer.datamodule.split("train").images
        found = nearest(samples, images, min(self.num_neighbours, len(images)))
        rows = torch.cat([samples[:, None], images[found]], dim=1)
        return grid(rows.flatten(0, 1), columns=rows.shape[1])


def nearest(samples: Tensor, images: Tensor, count: int, *, at_a_time: int = 4096) -> Tensor:
    """(N, count) the numbers of the images (M, C, H, W) that are nearest to each sample (N, C, H, W), the nearest first."""
    flat = samples.flatten(1).double()
    distances, numbers = flat.new_empty(len(flat), 0), torch.empty(len(flat), 0, dtype=torch.long)
    for start in range(0, len(images), at_a_time):
        some = images[start : start + at_a_time].flatten(1).double()
        distances = torch.cat([distances, torch.cdist(flat, some)], dim=1)
        numbers = torch.cat([numbers, torch.arange(start, start + len(some)).expand(len(flat), -1)], dim=1)
        kept = distances.topk(min(count, distances.shape[1]), dim=1, largest=False)
        distances, numbers = kept.values, numbers.gather(1, kept.indices)
    return numbers
