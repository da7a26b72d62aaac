"""A dataset: a function that gives all images, uint8 (N, C, H, W), and their labels."""

import torch

from ddpm_lightning.data.loaders import ImageSet


def bars(count: int, size: int = 8, *, seed: int = 0) -> ImageSet:
    """White bars on black, upright (label 0) or level (label 1), each in a random place."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(2, (count,), generator=generator)
    places = torch.randint(size, (count,), generator=generator)
    images = torch.zeros(count, 1, size, size, dtype=torch.uint8)
    images[torch.arange(count), 0, :, places] = 255
    images[labels == 1] = images[labels == 1].transpose(2, 3)
    return ImageSet(images, labels)
