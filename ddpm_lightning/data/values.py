"""Stored values and their mapping to and from the model's [−1, 1]."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ddpm_lightning.errors import UserError
from ddpm_lightning.ranges import require_one_of

__all__ = ["POINTS", "Values", "kind_of", "values_of"]

POINTS = (2, 1, 1)  # the shape of 2D points: images of two channels and one pixel

# By dtype: the range mapped to [−1, 1], and the dtype in memory, which every device can index.
_TYPES = {
    "uint8": (0.0, 255.0, torch.uint8),
    "uint16": (0.0, 65535.0, torch.int32),
    "float32": (-1.0, 1.0, torch.float32),
}


class Values(NamedTuple):
    """The dtype and range of stored values v, with x = 2(v − low)/(high − low) − 1.

    Args:
        dtype: "uint8", "uint16" or "float32".
        low: the value mapped to −1.
        high: the value mapped to 1.
    """

    dtype: str = "uint8"
    low: float = 0.0
    high: float = 255.0

    @property
    def memory(self) -> torch.dtype:
        """The dtype of the values in memory."""
        return _TYPES[self.dtype][2]

    @property
    def is_float(self) -> bool:
        """Whether the values are floats, which are neither rounded nor clipped."""
        return self.dtype == "float32"

    @property
    def is_whole(self) -> bool:
        """Whether the range is the full range of an integer dtype."""
        return not self.is_float and (self.low, self.high) == _TYPES[self.dtype][:2]

    def normalize(self, values: Tensor) -> Tensor:
        """Map stored values from [low, high] to float32 in [−1, 1]."""
        half = (self.high - self.low) / 2
        if self.is_float:
            return (values - (self.high + self.low) / 2) / half
        return (values.float() - self.low) / half - 1

    def denormalize(self, x: Tensor) -> Tensor:
        """The inverse of `normalize`: integers are clipped to the range and rounded.

        Raises:
            UserError: for NaN or infinite values.
        """
        if not x.isfinite().all():
            raise UserError(
                "the samples contain NaN or infinite values: choose another sampler=, or a checkpoint from before the loss diverged"
            )
        half = (self.high - self.low) / 2
        if self.is_float:
            return x.float() * half + (self.high + self.low) / 2
        return ((x.float().clamp(-1, 1) + 1) * half + self.low).round().to(self.memory)

    def array(self, values: Tensor) -> np.ndarray:
        """Stored values as an array of their own dtype."""
        return values.cpu().numpy().astype(self.dtype)

    def check(self, values: Tensor) -> Tensor:
        """Convert values to their dtype in memory.

        Raises:
            UserError: for NaN or infinite values, or another dtype.
        """
        low, high, memory = _TYPES[self.dtype]
        if values.is_floating_point() and not values.isfinite().all():
            raise UserError(
                "the dataset must hold finite numbers, but some are NaN or infinite: remove or replace them"
            )
        if values.numel() and not self._holds(values, low, high):
            lowest, highest = (float(v) for v in values.aminmax())
            raise UserError(
                f"data.dtype must match the dataset's values, got {self.dtype}: they are "
                f"{str(values.dtype).removeprefix('torch.')} from {lowest:.6g} to {highest:.6g}"
            )
        return values.to(memory)

    def _holds(self, values: Tensor, low: float, high: float) -> bool:
        if self.is_float:
            return True
        if self.dtype == "uint8" or values.is_floating_point():
            return values.dtype == self.memory
        return low <= int(values.min()) and int(values.max()) <= high


def values_of(data: Mapping[Any, Any]) -> Values:
    """The dtype and range of a data config, by default those of 8-bit images or points.

    Raises:
        UserError: for an unknown dtype or an invalid range.
    """
    dtype = data.get("dtype") or ("float32" if (data["channels"], *data["image_size"]) == POINTS else "uint8")
    require_one_of("data.dtype", dtype, [*_TYPES])
    low, high, _ = _TYPES[dtype]
    given = data.get("value_range")
    if given is None:
        return Values(dtype, low, high)
    pair = isinstance(given, Sequence) and len(given) == 2
    if not pair or not all(isinstance(v, int | float) for v in given) or not given[0] < given[1]:
        raise UserError(f"data.value_range must be [low, high], the values that become -1 and 1, or null, got {given}")
    if dtype != "float32" and not low <= given[0] < given[1] <= high:
        raise UserError(f"data.value_range must lie within [{low:.0f}, {high:.0f}] for data.dtype={dtype}, got {given}")
    return Values(dtype, float(given[0]), float(given[1]))


def kind_of(data: Mapping[Any, Any]) -> str:
    """The kind of data of a config: 2D "points", 8-bit "images" with 1 or 3 channels, or other "arrays"."""
    shape = (data["channels"], *data["image_size"])
    if shape == POINTS:
        return "points"
    return "images" if len(shape) == 3 and shape[0] in (1, 3) and values_of(data) == Values() else "arrays"
