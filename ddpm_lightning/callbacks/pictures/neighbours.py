"""Samples beside the training images that are nearest to them."""

from collections import deque
from collections.abc import Iterable
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from ddpm_lightning.callbacks.pictures.base import Pictures
from ddpm_lightning.data.loaders import InMemory
from ddpm_lightning.images import grid, to_uint8
from ddpm_lightning.ranges import is_integer

__all__ = ["Neighbours", "nearest"]

_PIXELS = 2**23  # of the training images that are looked at in one go, in float64


class Neighbours(Pictures):
    """Each sample in a row with its nearest training images in L2 distance of the pixels: a copy, also a mirrored one, would have itself beside it.

    Nothing is drawn for a stream, whose images are not in memory.

    Args:
        num_neighbours: training images in a row; the others are those of `Pictures`.
    """

    name = "neighbours"

    def __init__(self, *args: Any, num_neighbours: int = 5, **kwargs: Any):
        super().__init__(*args, **kwargs)
        if not is_integer(num_neighbours, "[1, 100]"):
            raise ValueError(f"num_neighbours={num_neighbours} must be 1 to 100")
        self.num_neighbours = num_neighbours

    def on_period(self, trainer: Trainer, pl_module: Any) -> None:
        if isinstance(trainer.datamodule.source, InMemory):
            super().on_period(trainer, pl_module)

    def draw(self, pl_module: Any) -> Tensor:
        samples = to_uint8(deque(self.steps(pl_module), maxlen=1)[0].x).cpu()
        if not pl_module.trainer.is_global_zero:
            return grid(samples)  # which is shown by rank zero alone
        data, at_a_time = pl_module.trainer.datamodule, max(1, _PIXELS // samples[0].numel())
        found = nearest(samples, (batch.x0 for batch in data.batches("train", at_a_time)), self.num_neighbours)
        rows = torch.cat([samples[:, None], found], dim=1)
        return grid(rows.flatten(0, 1), columns=rows.shape[1])


def nearest(samples: Tensor, blocks: Iterable[Tensor], count: int) -> Tensor:
    """(N, count, C, H, W) the images that are nearest to each sample or to its mirror image, the nearest first; fewer where there are fewer.

    Args:
        samples: (N, C, H, W).
        blocks: (M, C, H, W) of the images, one after the other.
        count: how many.
    """
    ours = [flipped.flatten(1).double() for flipped in (samples, samples.flip(-1))]
    distances, images = ours[0].new_empty(len(samples), 0), samples[:, None][:, :0]
    for block in blocks:
        theirs = block.flatten(1).double()
        new = torch.minimum(*(torch.cdist(flat, theirs) for flat in ours))
        within = new.topk(min(count, len(block)), dim=1, largest=False)  # of a block no more can matter
        distances = torch.cat([distances, within.values], dim=1)
        images = torch.cat([images, block[within.indices]], dim=1)
        kept = distances.topk(min(count, distances.shape[1]), dim=1, largest=False)
        distances, images = kept.values, images[torch.arange(len(samples))[:, None], kept.indices]
    return images
