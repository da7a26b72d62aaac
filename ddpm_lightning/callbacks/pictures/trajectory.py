"""The way from noise to image, as a strip and as an animation."""

from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from ddpm_lightning.callbacks.pictures.base import Pictures
from ddpm_lightning.images import grid, save_gif, to_uint8
from ddpm_lightning.ranges import require
from ddpm_lightning.samplers import Step

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
        require("num_columns", num_columns, "2..")
        require("num_frames", num_frames, "2..1000", optional=True)
        self.num_columns = num_columns
        self.num_frames = num_frames
        self._frames: list[Tensor] = []

    def on_period(self, trainer: Trainer, pl_module: Any) -> None:
        super().on_period(trainer, pl_module)
        frames, self._frames = self._frames, []
        if trainer.is_global_zero and frames:
            path = self.folder / f"{self.name}_{trainer.global_step:07d}.gif"
            save_gif(frames, path)
            for logger in trainer.loggers:
                if log_video := getattr(logger, "log_video", None):
                    log_video(f"samples/{self.name}_animation", [str(path)], step=trainer.global_step)

    def draw(self, pl_module: Any) -> Tensor:
        steps = list(self.steps(pl_module))
        if self.num_frames is not None:
            self._frames = [self._frame(steps[i]) for i in _shown(len(steps), self.num_frames)]
        shown = _shown(len(steps), self.num_columns)
        rows = torch.stack([torch.stack([steps[i].x, steps[i].x0], dim=1) for i in shown], dim=2)
        return grid(to_uint8(rows.flatten(0, 2)), columns=len(shown))

    @staticmethod
    def _frame(step: Step) -> Tensor:
        return grid(to_uint8(torch.stack([step.x, step.x0], dim=1).flatten(0, 1)), columns=2, cell=64)


def _shown(count: int, wanted: int) -> list[int]:
    return torch.linspace(0, count - 1, min(wanted, count)).round().int().tolist()
