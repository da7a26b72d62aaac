"""Linear operators A of measurements y = A x + σ_y ε: what of an image is known."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ddpm_lightning.errors import UserError
from ddpm_lightning.ranges import require

__all__ = ["Blur", "Downsample", "Mask", "Measurement", "Operator"]


class Operator(ABC):
    """A linear map A of images (B, C, ...)."""

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """A x."""

    @abstractmethod
    def transpose(self, y: Tensor) -> Tensor:
        """Aᵀ y."""

    @abstractmethod
    def solve(self, y: Tensor, variance: Tensor | float, noise: float) -> Tensor:
        """(variance·A Aᵀ + noise² I)⁻¹ y for y in the range of A; the pseudoinverse for noise = 0."""

    def agree(self, x: Tensor, y: Tensor) -> Tensor:
        """The nearest image to x with A x = y: x + A⁺(y − A x)."""
        return x + self.transpose(self.solve(y - self.forward(x), 1.0, 0.0))


class Measurement(NamedTuple):
    """What is known of images: y = A x + σ_y ε.

    Args:
        known: y, in the range of A.
        operator: the linear map A.
        noise: σ_y ≥ 0.
    """

    known: Tensor
    operator: Operator
    noise: float = 0.0


class Mask(Operator):
    """Keeps some values and sets the others to 0: A x = m·x.

    Args:
        known: m, 1 or true where values are known; broadcasts against x.
    """

    def __init__(self, known: Tensor):
        self.known = known

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(self._known(x), x, 0.0)

    def transpose(self, y: Tensor) -> Tensor:
        return self.forward(y)

    def solve(self, y: Tensor, variance: Tensor | float, noise: float) -> Tensor:
        return self.forward(y) / (variance + noise**2)

    def _known(self, x: Tensor) -> Tensor:
        return self.known.to(x.device).bool()


class Downsample(Operator):
    """Averages blocks of factor pixels along each axis: A Aᵀ = I/factor^axes.

    Args:
        factor: the side of a block.
        image_size: the sides of x.

    Raises:
        UserError: if the factor does not divide all sides.
    """

    def __init__(self, factor: int, image_size: Sequence[int]):
        require("factor", factor, "2..")
        if any(side % factor for side in image_size):
            raise UserError(f"factor must divide all sides of the images, {[*image_size]}, got {factor}")
        self.factor = factor
        self.image_size = tuple(image_size)
        self._share = 1 / factor ** len(self.image_size)

    def forward(self, x: Tensor) -> Tensor:
        for axis in range(2, x.ndim):
            x = x.unflatten(axis, (-1, self.factor)).mean(axis + 1)
        return x

    def transpose(self, y: Tensor) -> Tensor:
        for axis in range(2, y.ndim):
            y = y.repeat_interleave(self.factor, axis)
        return y * self._share

    def solve(self, y: Tensor, variance: Tensor | float, noise: float) -> Tensor:
        return y / (variance * self._share + noise**2)


class Blur(Operator):
    """Gaussian blur with mirrored edges: one symmetric matrix per axis, A = Aᵀ = V diag(g) Vᵀ.

    Args:
        std: standard deviation of the Gaussian, in pixels.
        image_size: the sides of x.
    """

    def __init__(self, std: float, image_size: Sequence[int]):
        require("std", std, "(0, inf)")
        self._matrices = [_blurring(side, std) for side in image_size]
        self._bases = [torch.linalg.eigh(matrix) for matrix in self._matrices]

    def forward(self, x: Tensor) -> Tensor:
        return _along_axes(x, self._matrices)

    def transpose(self, y: Tensor) -> Tensor:
        return self.forward(y)

    def solve(self, y: Tensor, variance: Tensor | float, noise: float) -> Tensor:
        gain = torch.ones(()).double()
        for values, _ in self._bases:
            gain = gain[..., None] * values
        gain = gain.clamp(min=0).to(y)
        scale = variance * gain**2 + noise**2
        seen = _along_axes(y, [vectors.T for _, vectors in self._bases])
        solved = torch.where(
            (gain > 1e-4) | (noise > 0), seen / scale, 0
        )  # without noise, lower gains are rounding error
        return _along_axes(solved, [vectors for _, vectors in self._bases])


def _blurring(side: int, std: float) -> Tensor:
    """The blur of a line, whose pixels repeat in reverse beyond its ends, (side, side) float64."""
    reach = max(1, int(8 * std) + 1)
    offsets = torch.arange(-reach, reach + 1)
    weights = torch.exp(-(offsets.double() ** 2) / (2 * std**2))
    rows = torch.arange(side)
    place = (rows[:, None] + offsets) % (2 * side)
    place = torch.where(place < side, place, 2 * side - 1 - place)
    return torch.zeros(side, side).double().scatter_add_(1, place, (weights / weights.sum()).expand(side, -1))


def _along_axes(x: Tensor, matrices: Sequence[Tensor]) -> Tensor:
    """Multiply each axis after the second by its matrix."""
    for axis, matrix in enumerate(matrices, start=2):
        x = torch.tensordot(x, matrix.to(x), dims=([axis], [1])).movedim(-1, axis)
    return x
