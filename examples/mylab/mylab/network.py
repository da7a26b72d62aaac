"""A network: anything that maps (x_t, t, y) to the shape of x_t."""

import torch
from torch import Tensor, nn


class Mixer(nn.Module):
    """Dilated convolutions with a time embedding."""

    num_classes = None  # it takes no labels

    def __init__(self, channels: int, width: int, depth: int):
        super().__init__()
        self.into = nn.Conv2d(channels, width, 3, padding=1)
        self.time = nn.Sequential(nn.Linear(2, width), nn.SiLU(), nn.Linear(width, width * depth))
        self.layers = nn.ModuleList(nn.Conv2d(width, width, 3, padding=2**i, dilation=2**i) for i in range(depth))
        self.out = nn.Conv2d(width, channels, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        angle = t[:, None] / 1000
        shifts = self.time(torch.cat([angle.sin(), angle.cos()], dim=1))[:, :, None, None]
        h = self.into(x)
        for layer, shift in zip(self.layers, shifts.chunk(len(self.layers), dim=1), strict=True):
            h = h + nn.functional.silu(layer(h) + shift)
        return self.out(h)
