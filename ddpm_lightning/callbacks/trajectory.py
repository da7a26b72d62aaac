"""The way from noise to image, as a strip."""

from typing import Any

import torch
from torch import Tensor

from ddpm_lightning.callbacks.pictures import Pictures
from ddpm_lightning.images import grid, to_uint8
from ddpm_lightning.ranges import is_whole

__all__ = ["Trajectory"]


class Trajectory(Pictures):
    """For each sample two rows: x_t from x_T to x_0, and below it the estimates x̂_0 that led there.

    Args:
        num_columns: points on the way that are shown, the first and the last included; the others are those of `Pictures`.
    """

    name = "trajectory"

    def __init__(self, *args: Any, num_columns: int = 10, **kwargs: Any):
        super().__init__(*args, **kwargs)
        if not is_whole(num_columns, "[2, inf)"):
            raise ValueError(f"num_columns={num_columns} must be 2 or more: the noise and the image")
        self.num_columns = num_columns

    def draw(self, pl_module: Any) -> Tensor:
        steps = list(self.steps(pl_module))
        shown = torch.linspace(0, len(steps) - 1, min(self.num_columns, len(steps))).round().int().tolist()
        rows = torch.stack([torch.stack([steps[i].x, steps[i].x0], dim=1) for i in shown], dim=2)
        return grid(to_uint8(rows.flatten(0, 2)), columns=len(shown))
