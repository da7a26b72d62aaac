"""Sample grids during training."""

from functools import partial
from typing import Any

from torch import Tensor

from ddpm_lightning.callbacks.gather import sampled_together
from ddpm_lightning.callbacks.pictures.base import Pictures, class_names_of
from ddpm_lightning.data.source import is_labels
from ddpm_lightning.sheets import Picture, contact_sheet

__all__ = ["SampleGrid"]


class SampleGrid(Pictures):
    """A grid of samples, one full row per label, or each beside its image condition; the ranks share the work.

    Takes the arguments of `Pictures`; with labels, `num_samples` is rounded down to full rows.
    """

    name = "grid"
    doing = "sampling a grid"

    def draw(self, pl_module: Any) -> Picture:
        count = self.num_samples
        if isinstance(self.condition, Tensor) and is_labels(self.condition) and count >= len(self.condition):
            count -= count % len(self.condition)  # full rows
        images = sampled_together(pl_module, count, partial(self.samples, pl_module))
        return contact_sheet(images.cpu(), self.condition, class_names=class_names_of(pl_module))
