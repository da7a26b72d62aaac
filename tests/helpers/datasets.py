"""Data sets in the files of their own formats."""

import struct

import numpy as np


def write_fashion_mnist(root, images, labels):
    """The set's files, in MNIST's own format."""
    raw = root / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for part in ("train", "t10k"):
        for name, array in (("images-idx3", images), ("labels-idx1", labels)):
            head = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
            (raw / f"{part}-{name}-ubyte").write_bytes(head + array.astype(np.uint8).tobytes())


def quadrants(height, width, channels=3):
    """A picture whose four quarters are of four colours."""
    array = np.zeros((height, width, channels), np.uint8)
    array[: height // 2, : width // 2] = 40
    array[: height // 2, width // 2 :] = 90
    array[height // 2 :, : width // 2] = 160
    array[height // 2 :, width // 2 :] = 250
    return array
