"""Base class of figures of samples."""

from abc import abstractmethod
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from ddpm_lightning import viewer
from ddpm_lightning.callbacks.ema import EMA, averaged_weights
from ddpm_lightning.callbacks.periodic import Periodic, show
from ddpm_lightning.callbacks.stopwatch import Stopwatch
from ddpm_lightning.data.conditions import load_condition
from ddpm_lightning.data.source import Condition, in_turn, is_labels
from ddpm_lightning.denoiser import Guidance
from ddpm_lightning.images import SeededNoise
from ddpm_lightning.ranges import require, require_one_of
from ddpm_lightning.samplers import Sampler, Step
from ddpm_lightning.sheets import Picture, captions_of

__all__ = ["Pictures", "class_names_of"]


class Pictures(Periodic):
    """Samples from fixed seeds, so that figures are comparable over time, with the EMA or raw weights in float32.

    All ranks sample, since sharded weights require all of them; rank zero saves and logs.

    The figure is saved to `<folder>/<name>_<step>.png` and logged as `samples/<name>` to every logger that takes images. The
    file's metadata say how it was made: training step, weights, sampler, steps, seed, schedule and prediction type.

    Args:
        sampler: maps noise to images.
        shape: (C, H, W) of one image, or (C, ...) of other data.
        folder: the folder for the files.
        num_samples: images per figure.
        every_n_steps: optimizer steps between figures; None for one at the end only.
        seed: the noise of image i depends on (seed, i) only.
        num_classes: image i has the label i mod num_classes; None for a model without labels.
        condition: image i has row i mod N of these N conditions, or of a file of them (see `load_condition`), in place of labels.
        guidance_scale: see `Guidance`, also for guidance_interval and guidance_rescale.
        weights: "ema" or "raw"; figures of the raw weights are named `raw_<name>`.
        ema: the run's EMA; None uses the raw weights.
        names: the sampler's and the schedule's names in the config, for the metadata.
        stopwatch: the training stopwatch, paused during sampling.

    Raises:
        UserError: for a number out of range, or unknown weights.
    """

    name: str

    def __init__(
        self,
        sampler: Sampler,
        shape: Sequence[int],
        folder: str | Path,
        *,
        num_samples: int,
        every_n_steps: int | None = None,
        seed: int = 0,
        num_classes: int | None = None,
        condition: Condition | str | Path | None = None,
        guidance_scale: float = 1.0,
        guidance_interval: Sequence[float] | None = None,
        guidance_rescale: float = 0.0,
        weights: str = "ema",
        ema: EMA | None = None,
        names: Mapping[str, str] | None = None,
        stopwatch: Stopwatch | None = None,
    ):
        super().__init__(folder, every_n_steps=every_n_steps, stopwatch=stopwatch)
        require("num_samples", num_samples, "1..10000")
        require("seed", seed, "0..")
        require_one_of("weights", weights, ("ema", "raw"))
        if weights == "raw":
            self.name = f"raw_{self.name}"
        self.sampler = sampler
        self.shape = tuple(shape)
        self.num_samples = num_samples
        self.seed = seed
        self.condition = load_condition(condition) if isinstance(condition, str | Path) else condition
        if self.condition is None and num_classes is not None:
            self.condition = torch.arange(num_classes)
        self.guidance = Guidance(guidance_scale, guidance_interval, guidance_rescale)
        self.weights = weights
        self.names = dict(names or {})
        self._ema = ema if weights == "ema" else None

    @property
    def state_key(self) -> str:
        return type(self).__name__ if self.weights == "ema" else self._generate_state_key(weights=self.weights)

    @abstractmethod
    def draw(self, pl_module: Any) -> Picture:
        """The figure."""

    def samples(self, pl_module: Any, indices: Sequence[int] | None = None) -> Tensor:
        """The final samples of `steps`: (N, C, ...) in [−1, 1]."""
        return deque(self.steps(pl_module, indices), maxlen=1)[0].x

    def steps(self, pl_module: Any, indices: Sequence[int] | None = None) -> Iterator[Step]:
        """The trajectory from noise to image, with guidance and conditions if any: each x_t beside its estimate of x_0.

        Args:
            pl_module: the module, holding the weights to sample with.
            indices: the image indices; None for all.
        """
        indices = range(self.num_samples) if indices is None else indices
        noise = SeededNoise(self.seed, indices)
        x = noise.draw(self.shape).to(pl_module.device)
        y = in_turn(self.condition, indices, x.device)
        steps = self.sampler.trajectory(self.guidance.of(pl_module.denoiser), x, y, randn=noise)
        return viewer.beside_estimates(self._times(pl_module)[0], x, steps)

    def captions(self, pl_module: Any) -> list[str]:
        """The labels of the samples, used in turn; empty without labels."""
        if not isinstance(self.condition, Tensor) or not is_labels(self.condition):
            return []
        return captions_of(self.condition.tolist(), class_names_of(pl_module))

    def facts(self, pl_module: Any) -> dict[str, str]:
        """How the figure was made, by name."""
        return {
            "training step": f"{pl_module.trainer.global_step:,}",
            "weights": "raw" if self._ema is None else "ema",
            **viewer.facts_of(
                self.sampler,
                len(self._times(pl_module)) - 1,
                pl_module.denoiser,
                seed=self.seed,
                guidance=self.guidance,
                names=self.names,
            ),
        }

    def _times(self, pl_module: Any) -> Sequence[float]:
        return self.sampler.times_on(pl_module.denoiser.schedule)

    def on_period(self, trainer: Trainer, pl_module: Any) -> None:
        with averaged_weights(pl_module, self._ema), torch.autocast(pl_module.device.type, enabled=False):
            pixels, facts = self.draw(pl_module)
        picture = Picture(pixels, {**self.facts(pl_module), **facts})
        show(trainer, picture, self.folder / f"{self.name}_{trainer.global_step:07d}.png", self.name)


def class_names_of(pl_module: Any) -> list[str]:
    """The names of the dataset's labels; empty if they have none."""
    data = pl_module.trainer.datamodule
    return [] if data is None else [*(data.source.classes or ())]
