"""Sample grids during training."""

from typing import Any

from torch import Tensor

from ddpm_lightning.callbacks.pictures import Pictures
from ddpm_lightning.images import SeededNoise, grid, to_uint8

__all__ = ["SampleGrid"]


class SampleGrid(Pictures):
    """A square of samples; the arguments are those of `Pictures`."""

    name = "grid"

    def draw(self, pl_module: Any) -> Tensor:
        noise = SeededNoise(self.seed, range(self.num_samples))
        x = noise.draw(self.shape).to(pl_module.device)
        samples = self.sampler(pl_module.denoiser, x, randn=noise)
        return grid(to_uint8(samples))
