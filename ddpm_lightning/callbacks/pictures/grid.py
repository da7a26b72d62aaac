"""Sample grids during training."""

from functools import partial
from typing import Any

from torch import Tensor

from ddpm_lightning.callbacks.gather import sampled_together
from ddpm_lightning.callbacks.pictures.base import Pictures
from ddpm_lightning.images import grid, rows_by_label

__all__ = ["SampleGrid"]


class SampleGrid(Pictures):
    """A square of samples, or a row for each label; the ranks share the work. The arguments are those of `Pictures`."""

    name = "grid"

    def draw(self, pl_module: Any) -> Tensor:
        images = sampled_together(pl_module, self.num_samples, partial(self.samples, pl_module))
        return grid(images) if self.labels is None else rows_by_label(images.cpu(), len(self.labels))
