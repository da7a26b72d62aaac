"""Samples beside their nearest training images."""

from typing import Any

from lightning.pytorch import Trainer

from ddpm_lightning.callbacks.pictures.base import Pictures
from ddpm_lightning.data.loaders import InMemory
from ddpm_lightning.images import to_uint8
from ddpm_lightning.metrics.distances import nearest
from ddpm_lightning.ranges import require
from ddpm_lightning.sheets import Picture, beside_neighbors, sheet

__all__ = ["Neighbors"]


class Neighbors(Pictures):
    """Each sample in a row with its nearest training images by L2 pixel distance, which reveals copies, mirrored ones included.

    Not available for streams, whose images are not in memory, or data other than 8-bit images.

    Args:
        num_neighbors: training images per row; the other arguments are those of `Pictures`.
    """

    name = "neighbors"
    doing = "finding the nearest training images"

    def __init__(self, *args: Any, num_neighbors: int = 5, **kwargs: Any):
        super().__init__(*args, **kwargs)
        require("num_neighbors", num_neighbors, "1..100")
        self.num_neighbors = num_neighbors

    def on_period(self, trainer: Trainer, pl_module: Any) -> None:
        source = trainer.datamodule.source
        if isinstance(source, InMemory) and source.are_images:
            super().on_period(trainer, pl_module)

    def draw(self, pl_module: Any) -> Picture:
        samples = to_uint8(self.samples(pl_module)).cpu()
        if not pl_module.trainer.is_global_zero:
            return sheet(samples)  # only rank zero shows it
        images = pl_module.trainer.datamodule.split("train").images
        _, found = nearest(samples, images, count=self.num_neighbors, mirrored=True)
        names = self.captions(pl_module)
        return beside_neighbors(
            samples, images[found], names=[names[i % len(names)] for i in range(len(samples)) if names]
        )
