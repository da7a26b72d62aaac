"""2D points as images of two channels and one pixel; every public function can be a config's `data.dataset`."""

import math

import torch
from torch import Tensor

from ddpm_lightning.data.loaders import ImageSet
from ddpm_lightning.ranges import require
from ddpm_lightning.seeds import derive

__all__ = ["checkerboard", "swiss_roll", "two_moons"]


def two_moons(num_points: int, noise: float = 0.05, *, seed: int = 0) -> ImageSet:
    """Two interleaving half circles; the label is the moon (scikit-learn's `make_moons`).

    Moon 0 is (cos θ, sin θ), moon 1 (1 − cos θ, ½ − sin θ), θ ~ U[0, π]; a point p of either moon becomes x = (p + σε − (½, ¼))/(1.5 + 4σ).

    Args:
        num_points: N, in total.
        noise: σ, with ε ~ N(0, I).
        seed: the random seed.

        Raises:
            UserError: for a setting out of range, as in all datasets here.
    """
    generator = _generator("two_moons", num_points, noise, seed)
    labels = torch.randint(2, (num_points,), generator=generator)
    angle = math.pi * torch.rand(num_points, generator=generator)
    first = torch.stack([angle.cos(), angle.sin()], dim=1)
    p = torch.where(labels[:, None] == 0, first, torch.tensor([1.0, 0.5]) - first)
    return _set(p - torch.tensor([0.5, 0.25]), labels, reach=1.5, noise=noise, generator=generator)


def swiss_roll(num_points: int, noise: float = 0.02, *, seed: int = 0) -> ImageSet:
    """A spiral of 1.5 turns; the label is the quarter of the roll, from the inside (scikit-learn's `make_swiss_roll` in 2D).

    p = r·(cos φ, sin φ) with r = (1 + 2u)/3, φ = 4.5π·r and u ~ U[0, 1); x = (p + σε)/(1 + 4σ), and the label ⌊4u⌋.

    Args:
        num_points: N.
        noise: σ, with ε ~ N(0, I).
        seed: of the random numbers.
    """
    generator = _generator("swiss_roll", num_points, noise, seed)
    u = torch.rand(num_points, generator=generator)
    r = (1 + 2 * u) / 3
    angle = 4.5 * math.pi * r
    p = r[:, None] * torch.stack([angle.cos(), angle.sin()], dim=1)
    return _set(p, (4 * u).long(), reach=1.0, noise=noise, generator=generator)


def checkerboard(num_points: int, *, seed: int = 0) -> ImageSet:
    """Uniform on the eight black cells of a 4×4 board on [−1, 1]²; the label is the cell, row by row from the bottom.

    Cell c lies in row ⌊c/2⌋ and column 2·(c mod 2) + (row mod 2), and x = ((column, row) + u)/2 − 1 with u ~ U[0, 1)².

    Args:
        num_points: N.
        seed: of the random numbers.
    """
    generator = _generator("checkerboard", num_points, 0.0, seed)
    cell = torch.randint(8, (num_points,), generator=generator)
    row = cell // 2
    corner = torch.stack([2 * (cell % 2) + row % 2, row], dim=1)
    p = (corner + torch.rand(num_points, 2, generator=generator)) / 2 - 1
    return _set(p, cell, reach=1.0, noise=0.0, generator=generator)


def _generator(name: str, num_points: int, noise: float, seed: int) -> torch.Generator:
    require("data.dataset.num_points", num_points, "1..10000000")
    require("data.dataset.noise", noise, "[0, 1]")
    require("data.dataset.seed", seed, "0..")
    return torch.Generator().manual_seed(derive(seed, name))


def _set(p: Tensor, labels: Tensor, *, reach: float, noise: float, generator: torch.Generator) -> ImageSet:
    """Add noise to points within ±reach, and scale them into [−1, 1] up to 4σ."""
    x = (p + noise * torch.randn(p.shape, generator=generator)) / (reach + 4 * noise)
    return ImageSet(x[:, :, None, None], labels)
