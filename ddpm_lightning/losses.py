"""What is minimised: time draws, weightings, and the loss that they make up."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from ddpm_lightning.denoiser import Denoiser

__all__ = ["Loss", "TimeDraw", "Uniform"]


class TimeDraw(ABC):
    """How t is drawn for a batch."""

    @abstractmethod
    def __call__(self, batch_size: int, num_steps: int, *, device: torch.device) -> tuple[Tensor, Tensor]:
        """t of shape (B, 1, 1, 1) in 1..num_steps, and the weight (B,) that makes the loss unbiased for uniform t."""


class Uniform(TimeDraw):
    """t ~ U{1, …, T}, each with weight 1 (Murphy 2023, Algorithm 25.1)."""

    def __call__(self, batch_size: int, num_steps: int, *, device: torch.device) -> tuple[Tensor, Tensor]:
        t = torch.randint(1, num_steps + 1, (batch_size, 1, 1, 1), device=device)
        return t, torch.ones(batch_size, device=device)


class Loss(nn.Module):
    """L_simple: the mean over pixels of the squared error of the network's output, ‖ε − ε_θ(x_t, t)‖² for ε-prediction (Ho et al. 2020, Eq. 14).

    Args:
        times: how t is drawn.
    """

    def __init__(self, times: TimeDraw | None = None):
        super().__init__()
        self.times = times if times is not None else Uniform()

    def forward(
        self, denoiser: Denoiser, x0: Tensor, x_t: Tensor, t: Tensor, noise: Tensor, y: Tensor | None = None
    ) -> Tensor:
        """The loss of each image, (B,) float32."""
        error = denoiser.predict(x_t, t, y).float() - denoiser.target(x0, noise, t)
        return error.square().flatten(1).mean(1)
