"""A callback that draws a picture every so many steps and at the end."""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from ddpm_lightning.callbacks.ema import averaged_weights
from ddpm_lightning.denoiser import Guided
from ddpm_lightning.images import SeededNoise, labels_in_turn, save_png
from ddpm_lightning.ranges import is_whole, within
from ddpm_lightning.samplers import Sampler, Step

__all__ = ["Pictures"]


class Pictures(Callback):
    """Draws from fixed seeds, so that pictures are comparable over time, with the averaged weights, in float32.

    All ranks draw, since weights that are shared out ask for all; rank zero saves and logs.

    The picture goes to `<folder>/<name>_<step>.png` and to every logger that takes images, as `samples/<name>`.

    Args:
        sampler: noise to image.
        shape: (C, H, W) of one image.
        folder: where the files go.
        num_samples: images in a picture.
        every_n_steps: optimiser steps between pictures; None for one at the end only.
        seed: image i's noise depends on (seed, i) only.
        num_classes: image i is drawn with the label i mod num_classes; None for a model without labels.
        guidance_scale: of classifier-free guidance, see `Guided`.

    Raises:
        ValueError: for numbers that are none of these.
    """

    name: str

    def __init__(
        self,
        sampler: Sampler,
        shape: tuple[int, int, int],
        folder: str | Path,
        *,
        num_samples: int,
        every_n_steps: int | None = None,
        seed: int = 0,
        num_classes: int | None = None,
        guidance_scale: float = 1.0,
    ):
        if not is_whole(num_samples, "[1, 10000]"):
            raise ValueError(f"num_samples={num_samples} is no number of images in a picture: give 1 to 10000")
        if every_n_steps is not None and not is_whole(every_n_steps):
            raise ValueError(f"every_n_steps={every_n_steps} must be 1 or more, or null for one picture at the end")
        if not is_whole(seed, "[0, inf)"):
            raise ValueError(f"seed={seed} is no seed: give a whole number, 0 or more")
        if not within(guidance_scale, "[0, inf)"):
            raise ValueError(f"guidance_scale={guidance_scale} will not do: give a number, 0 or more")
        self.sampler = sampler
        self.shape = tuple(shape)
        self.folder = Path(folder)
        self.num_samples = num_samples
        self.every_n_steps = every_n_steps
        self.seed = seed
        self.labels = None if num_classes is None else range(num_classes)
        self.guidance_scale = guidance_scale
        self._last_step = -1

    @abstractmethod
    def draw(self, pl_module: Any) -> Tensor:
        """The picture, uint8 (C, H, W)."""

    def steps(self, pl_module: Any, indices: Sequence[int] | None = None) -> Iterator[Step]:
        """The way from noise to image, guided and with labels where there are any; first the noise, with grey as its estimate.

        Args:
            pl_module: the module, with the weights to draw with.
            indices: which of the images; None for all.
        """
        indices = range(self.num_samples) if indices is None else indices
        noise = SeededNoise(self.seed, indices)
        x = noise.draw(self.shape).to(pl_module.device)
        y = labels_in_turn(indices, self.labels)
        yield Step(pl_module.denoiser.schedule.num_steps, x, torch.zeros_like(x), 0)
        guided = Guided(pl_module.denoiser, self.guidance_scale)
        yield from self.sampler.trajectory(guided, x, None if y is None else y.to(x.device), randn=noise)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.every_n_steps and trainer.global_step and trainer.global_step % self.every_n_steps == 0:
            self._picture(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._picture(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        return {"last_step": self._last_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._last_step = state_dict["last_step"]

    def _picture(self, trainer: Trainer, pl_module: LightningModule) -> None:
        step = trainer.global_step
        if step == self._last_step:
            return  # drawn already: by an earlier micro-batch of this step, or just before the end
        self._last_step = step
        with averaged_weights(trainer, pl_module), torch.autocast(pl_module.device.type, enabled=False):
            picture = self.draw(pl_module)
        if trainer.is_global_zero:
            save_png(picture, self.folder / f"{self.name}_{step:07d}.png")
            for logger in trainer.loggers:
                if log_image := getattr(logger, "log_image", None):
                    log_image(f"samples/{self.name}", [picture.permute(1, 2, 0).numpy()], step=step)
