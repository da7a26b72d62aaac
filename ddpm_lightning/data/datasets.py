"""Sources of images."""

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Batch", "ImageSet", "digits"]


class Batch(NamedTuple):
    """What a training step gets.

    x0: (B, C, H, W), uint8 from the loader and float32 in [−1, 1] from the data module on; y: (B,) int64 labels
    or None; ids: (B,) int64, each image's number within its set.
    """

    x0: Tensor
    y: Tensor | None
    ids: Tensor


class ImageSet(NamedTuple):
    """A set that fits in memory: images uint8 (N, C, H, W), labels int64 (N,)."""

    images: Tensor
    labels: Tensor


def digits() -> ImageSet:
    """The 1,797 handwritten digits that scikit-learn ships: 8×8 pixels, one channel, ten classes (UCI Optical Recognition of Handwritten Digits)."""
    from sklearn.datasets import load_digits

    data = load_digits()
    images = (torch.from_numpy(data.images) * (255 / 16)).round().to(torch.uint8)
    return ImageSet(images[:, None], torch.from_numpy(data.target).long())
