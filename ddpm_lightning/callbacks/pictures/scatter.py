"""Scatter plots of points during training."""

from typing import Any

import torch

from ddpm_lightning.callbacks.pictures.base import Pictures
from ddpm_lightning.data.source import in_turn, is_labels
from ddpm_lightning.ranges import require
from ddpm_lightning.sheets import Picture

__all__ = ["Scatter"]


class Scatter(Pictures):
    """Real points beside generated ones, above the trajectory x_T, …, x_0 in equal steps of √(1−ᾱ_t).

    Args:
        num_columns: timesteps of the trajectory to show, first and last included; the other arguments are those of `Pictures`.
    """

    name = "scatter"
    doing = "sampling points"

    def __init__(self, *args: Any, num_columns: int = 6, **kwargs: Any):
        super().__init__(*args, **kwargs)
        require("num_columns", num_columns, "2..20")
        self.num_columns = num_columns

    def draw(self, pl_module: Any) -> Picture:
        from ddpm_lightning.plots import Panel, draw_points

        steps = list(self.steps(pl_module))
        y = in_turn(self.condition, range(self.num_samples)) if is_labels(self.condition) else None
        real = pl_module.trainer.datamodule.split("train")
        x0, labels = real.images[: self.num_samples], real.labels[: self.num_samples]
        beside = [
            Panel(f"{len(x0):,} real points", x0, None if y is None else labels),
            Panel(f"{self.num_samples:,} generated, step {pl_module.trainer.global_step:,}", steps[-1].x, y),
        ]
        schedule = pl_module.denoiser.schedule
        level = schedule.scales(torch.tensor([step.t for step in steps], device=schedule.alpha_bar.device))[1].cpu()
        wanted = torch.linspace(level[0].item(), level[-1].item(), self.num_columns)
        shown = sorted(set((level - wanted[:, None]).abs().argmin(1).tolist()))
        trajectory = [Panel(f"t = {steps[i].t:.7g}", steps[i].x, y) for i in shown]
        return Picture(draw_points([beside, trajectory], names=self.captions(pl_module)), {})
