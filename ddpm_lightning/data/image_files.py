"""Image files to tensors: decoded, converted, resized, and refused where too many of them are damaged."""

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ddpm_lightning.data.loaders import check_size
from ddpm_lightning.errors import UserError
from ddpm_lightning.images import open_image

__all__ = ["check_damaged", "read_image", "read_images"]

log = logging.getLogger(__name__)


def read_images(
    paths: Sequence[Path], *, channels: int, image_size: Sequence[int], max_damaged: float = 0.01
) -> tuple[Tensor, Tensor]:
    """Image files as uint8 (N, C, H, W), resized and cropped at the center, and the positions (N,) of those that could be read.

    Transparent parts become white; 16 bits become 8. A damaged file is named and left out.

    Args:
        paths: the files.
        channels: 1 or 3.
        image_size: (height, width).
        max_damaged: see `check_damaged`.

    Raises:
        UserError: for too many damaged files, or more images than fit in memory.
    """
    height, width = image_size
    check_size(len(paths), channels, image_size)

    def read(path: Path) -> np.ndarray | None:
        try:
            return read_image(path, channels, (width, height))
        except ValueError as error:
            log.warning("%s is damaged and left out (%s)", path, error)
            return None

    with ThreadPoolExecutor() as pool:  # Pillow decodes outside of Python's lock
        arrays = list(pool.map(read, paths))
    damaged = [str(path) for path, array in zip(paths, arrays, strict=True) if array is None]
    check_damaged(len(damaged), len(paths), max_damaged, example=", ".join(damaged[:1]))
    images = torch.from_numpy(np.stack([array for array in arrays if array is not None]))
    kept = [i for i, array in enumerate(arrays) if array is not None]
    return images.permute(0, 3, 1, 2).contiguous(), torch.tensor(kept)


def check_damaged(damaged: int, total: int, max_damaged: float, *, example: str) -> None:
    """Refuse a dataset in which more than a fraction of the images are damaged, or all of them.

    Args:
        damaged: how many are.
        total: of how many.
        max_damaged: the fraction that may be.
        example: one of them.

    Raises:
        UserError: that names it.
    """
    allowed = min(max_damaged * total, total - 1)
    if damaged > allowed:
        raise UserError(
            f"{damaged} of {total} images are damaged, among them {example}: fix or remove them; "
            f"data.dataset.max_damaged={max_damaged} allows {int(allowed)}"
        )


def read_image(file: Path | IO[bytes], channels: int, size: tuple[int, int]) -> np.ndarray:
    """One image file as uint8 (H, W, C), in the form that `read_images` describes.

    Args:
        file: the file.
        channels: 1 or 3.
        size: (width, height).

    Raises:
        ValueError: for a damaged file; one line says how.
    """
    try:
        with open_image(file) as image:
            return _as_bytes(image, channels, size)
    except Exception as error:  # on damaged bytes Pillow's decoders raise what they come upon
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from error


def _as_bytes(image: Image.Image, channels: int, size: tuple[int, int]) -> np.ndarray:
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16 bits in 32: Pillow would cut them off at 255
        levels = np.asarray(image).clip(0, 65535).astype(np.uint16)  # n/257, rounded: there are no halves
        image = Image.fromarray(((levels + np.uint32(128)) // np.uint32(257)).astype(np.uint8))
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = ImageOps.fit(image.convert("L" if channels == 1 else "RGB"), size, Image.Resampling.BICUBIC)
    return np.asarray(image).reshape(size[1], size[0], channels)
