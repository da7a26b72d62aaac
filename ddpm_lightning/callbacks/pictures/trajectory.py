"""The way from noise to image, as a strip and as an animation."""

from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from ddpm_lightning.callbacks.pictures.base import Pictures
from ddpm_lightning.images import as_pictures, grid, save_gif
from ddpm_lightning.ranges import require

__all__ = ["Trajectory"]


class Trajectory(Pictures):
    """For each sample two rows: x_t from x_T to x_0, and below it the estimates x̂_0 that led there.

    The same as an animation, x_t on the left and x̂_0 on the right, goes to `<folder>/trajectory_<step>.gif` and as
    `samples/trajectory_animation` to every logger that takes videos.

    Args:
        num_columns: points on the way that are shown, the first and the last included; the others are those of `Pictures`.
        num_frames: pictures of the animation, likewise; None for no animation.
    """

    name = "trajectory"

    def __init__(self, *args: Any, num_columns: int = 10, num_frames: int | None = 26, **kwargs: Any):
        super().__init__(*args, **kwargs)
        require("num_columns", num_columns, "2..1000")
        require("num_frames", num_frames, "2..1000", optional=True)
        self.num_columns = num_columns
        self.num_frames = num_frames

    def draw(self, pl_module: Any) -> Tensor:
        pairs = [torch.stack([step.x, step.x0], dim=1) for step in self.steps(pl_module)]
        if self.num_frames is not None and pl_module.trainer.is_global_zero:
            self._animate(pl_module.trainer, _evenly(pairs, self.num_frames))
        shown = _evenly(pairs, self.num_columns)
        return grid(as_pictures(torch.stack(shown, dim=2).flatten(0, 2)), columns=len(shown))

    def _animate(self, trainer: Trainer, pairs: list[Tensor]) -> None:
        path = self.folder / f"{self.name}_{trainer.global_step:07d}.gif"
        save_gif([grid(as_pictures(pair.flatten(0, 1)), columns=2, cell=64) for pair in pairs], path)
        for logger in trainer.loggers:
            if log_video := getattr(logger, "log_video", None):
                log_video(f"samples/{self.name}_animation", [str(path)], step=trainer.global_step)


def _evenly(pairs: list[Tensor], wanted: int) -> list[Tensor]:
    """So many of them, the first and the last included."""
    chosen = torch.linspace(0, len(pairs) - 1, min(wanted, len(pairs))).round().int()
    return [pairs[i] for i in chosen]
