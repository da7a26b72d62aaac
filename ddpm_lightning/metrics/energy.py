"""How far samples are from a dataset, as a loss with gradients: the energy distance in several kinds of features."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from ddpm_lightning.seeds import derive

__all__ = ["EnergyDistance", "RandomFeatures"]


class EnergyDistance:
    """Σ 2 E‖f(x) − f(y)‖ − E‖f(x) − f(x')‖ − E‖f(y) − f(y')‖ over features f, which is 0 for the same distribution (Székely & Rizzo 2013).

    The estimate from a batch of x is unbiased. Features are centered and scaled to a mean square of 1 over y.

    Args:
        y: (N, ...) the samples that others are compared with, N ≥ 2.
        features: each maps samples (B, ...) to (B, D).
    """

    def __init__(self, y: Tensor, features: Sequence[Callable[[Tensor], Tensor]]):
        self.features = features
        with torch.no_grad():
            found = [feature(y) for feature in features]
        self.means = [held.mean(0) for held in found]
        self.scales = [float(held.var(0).sum().sqrt()) + 1e-12 for held in found]
        self.held = [(held - mean) / scale for held, mean, scale in zip(found, self.means, self.scales, strict=True)]
        self.own = torch.stack([torch.pdist(held).mean() for held in self.held]).sum()

    def __call__(self, x: Tensor) -> Tensor:
        """The distance of samples (B, ...), B ≥ 2."""
        kinds = zip(self.features, self.means, self.scales, self.held, strict=True)
        ours = [((feature(x) - mean) / scale, held) for feature, mean, scale, held in kinds]
        return (
            torch.stack([2 * torch.cdist(a, held).mean() - torch.pdist(a).mean() for a, held in ours]).sum() - self.own
        )


class RandomFeatures(nn.Module):
    """Random convolutions at several scales with fixed weights, each feature standardized on some images.

    They see strokes and textures, where distances of pixels mostly show coarse shapes.

    Args:
        x: (N, C, H, W) images, H and W from 4.
    """

    def __init__(self, x: Tensor):
        super().__init__()
        self.layers = nn.ModuleList()
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(derive(0, "random features"))  # and no GPU's generator
            widths = [x.shape[1], 32, *(min(2**i, 256) for i in range(6, 5 + int(math.log2(min(x.shape[2:])))))]
            for narrow, wide in pairwise(widths):
                layer = nn.Conv2d(narrow, wide, 3, padding=1)
                nn.init.orthogonal_(layer.weight, 2**0.5)
                nn.init.uniform_(layer.bias, -0.5, 0.5)  # type: ignore[arg-type]
                self.layers.append(layer)
        self.to(x).requires_grad_(False)
        found = self._filtered(x)
        self.mean, self.scale = found.mean(0), found.std(0) + 1e-4  # rare features count as much as others

    def forward(self, x: Tensor) -> Tensor:
        return (self._filtered(x) - self.mean) / self.scale

    def _filtered(self, x: Tensor) -> Tensor:
        found = []
        for layer in self.layers:
            x = layer(x).relu()
            found.append(functional.adaptive_avg_pool2d(x, 2).flatten(1))
            x = functional.max_pool2d(x, 2, ceil_mode=True)
        return torch.cat(found, dim=1)
