"""Sample grids during training."""

from functools import partial
from typing import Any

from torch import Tensor

from ddpm_lightning.callbacks.gather import sampled_together
from ddpm_lightning.callbacks.pictures.base import Pictures
from ddpm_lightning.images import contact_sheet

__all__ = ["SampleGrid"]


class SampleGrid(Pictures):
    """A square grid of samples, one row per label, or each beside its image condition; the ranks share the work.

    Takes the arguments of `Pictures`.
    """

    name = "grid"
    doing = "sampling a grid"

    def draw(self, pl_module: Any) -> Tensor:
        images = sampled_together(pl_module, self.num_samples, partial(self.samples, pl_module))
        return contact_sheet(images.cpu(), self.condition)
