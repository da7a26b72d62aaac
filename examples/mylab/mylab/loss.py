"""A loss with a parameter of its own, which is trained with the network."""

import torch
from torch import Tensor, nn

from ddpm_lightning import Loss


class Uncertain(Loss):
    """L/e^u + u, with u(λ) learned: each noise level is weighted by how well it can be predicted (Karras et al. 2024, Eq. 21)."""

    def __init__(self, **draw):
        super().__init__(**draw)
        self.log_variance = nn.Linear(1, 1)
        nn.init.zeros_(self.log_variance.weight)
        nn.init.zeros_(self.log_variance.bias)

    def forward(self, denoiser, x0: Tensor, x_t: Tensor, t: Tensor, noise: Tensor, y: Tensor | None = None) -> Tensor:
        losses = super().forward(denoiser, x0, x_t, t, noise, y)
        u = self.log_variance(denoiser.schedule.log_snr[t].reshape(-1, 1) / 10)[:, 0]
        return losses * torch.exp(-u) + u
