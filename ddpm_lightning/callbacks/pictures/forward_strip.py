"""A strip of the forward process: real images on their way to noise."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor

from ddpm_lightning.callbacks.periodic import show
from ddpm_lightning.callbacks.pictures.base import class_names_of
from ddpm_lightning.data.source import is_labels
from ddpm_lightning.data.values import POINTS
from ddpm_lightning.images import SeededNoise, as_pictures
from ddpm_lightning.ranges import require
from ddpm_lightning.sheets import Picture, captions_of, sheet
from ddpm_lightning.viewer import evenly

__all__ = ["ForwardStrip"]

_POINTS = 2000  # points per panel


class ForwardStrip(Callback):
    """Real images as x_0, …, x_T of the run's noise schedule, drawn when training begins.

    A row shows x_t = √ᾱ_t x_0 + √(1−ᾱ_t) ε of one image with the same ε throughout; the columns are named by t and ᾱ_t. The
    images are the first held-out ones, or training images if none is held out; points become scatter plots. The figure is
    saved to `<folder>/forward_strip.png` and logged as `samples/forward_strip` to every logger that takes images.

    Args:
        shape: (C, H, W) of one image, or (C, ...) of other data.
        folder: the folder for the file.
        num_images: the number of images.
        num_columns: evenly spaced timesteps, 0 and T included.
        times: the timesteps to show instead.
        seed: the noise of image i depends on (seed, i) only.
        names: the schedule's name in the config, for the metadata.

    Raises:
        UserError: for a number out of range, or, in `times_on`, a timestep beyond T.
    """

    def __init__(
        self,
        shape: Sequence[int],
        folder: str | Path,
        *,
        num_images: int = 4,
        num_columns: int = 11,
        times: Sequence[int] | None = None,
        seed: int = 0,
        names: Mapping[str, str] | None = None,
    ):
        require("num_images", num_images, "1..100")
        require("num_columns", num_columns, "2..100")
        require("seed", seed, "0..")
        for t in times or ():
            require("times", t, "0..")
        self._are_points = tuple(shape) == POINTS
        self.folder = Path(folder)
        self.num_images = num_images
        self.num_columns = num_columns
        self.times = times
        self.seed = seed
        self._names = {key: name for key, name in (names or {}).items() if key == "schedule"}

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        if trainer.global_step == 0 and trainer.is_global_zero:  # a resumed run has it already
            picture = self.draw(pl_module)
            facts = {"seed": str(self.seed), **self._names, **picture.facts}
            show(trainer, Picture(picture.pixels, facts), self.folder / "forward_strip.png", "forward_strip")

    def times_on(self, T: int) -> Sequence[int]:
        """The timesteps of the columns.

        Raises:
            UserError: for a timestep beyond T.
        """
        for t in self.times or ():
            require("callbacks.forward_strip.times", t, f"0..{T}", hint=f"the schedule has T={T}")
        return evenly(T + 1, self.num_columns) if self.times is None else self.times

    def draw(self, pl_module: Any) -> Picture:
        """The figure."""
        schedule = pl_module.denoiser.schedule
        times = self.times_on(schedule.num_steps)
        x, labels = self._noised(pl_module, times)
        if self._are_points:
            from ddpm_lightning.plots import Panel, draw_points

            return Picture(draw_points([[Panel(f"t = {t}", x[:, i], labels) for i, t in enumerate(times)]]), {})
        class_names = class_names_of(pl_module)
        named = [f"image {i}" for i in range(len(x))]
        if labels is not None and not class_names and not labels.any():  # such as a flat folder
            labels = None
        return sheet(
            as_pictures(x.flatten(0, 1)),
            columns=len(times),
            names=named if labels is None else captions_of(labels.tolist(), class_names),
            heads=[f"t = {t}\nᾱ = {schedule.alpha_bar[t]:.2g}" for t in times],
        )

    def _noised(self, pl_module: Any, times: Sequence[int]) -> tuple[Tensor, Tensor | None]:
        """x_t of each image at each time (N, times, C, ...), and the images' labels, if any."""
        data, schedule = pl_module.trainer.datamodule, pl_module.denoiser.schedule
        count = _POINTS if self._are_points else self.num_images
        batch = next(batch for name in ("validation", "train") for batch in data.batches(name, count))
        x0 = data.values.normalize(batch.x0[:count]).to(schedule.alpha_bar.device)
        noise = SeededNoise(self.seed, range(len(x0)))(x0)
        x = [schedule.q_sample(x0, torch.tensor(t, device=x0.device), noise) for t in times]
        return torch.stack(x, dim=1).cpu(), batch.y[:count] if is_labels(batch.y) else None
