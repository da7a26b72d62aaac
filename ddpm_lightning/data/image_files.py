"""Read image files as tensors: decode, convert and resize, and refuse too many damaged files."""

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ddpm_lightning.data.fitting import Fit
from ddpm_lightning.data.loaders import check_size
from ddpm_lightning.data.values import Values
from ddpm_lightning.errors import UserError
from ddpm_lightning.images import open_image
from ddpm_lightning.ranges import require, require_one_of

__all__ = ["check_damaged", "read_image", "read_images"]

log = logging.getLogger(__name__)


def read_images(
    files: Sequence[Path | IO[bytes]],
    *,
    names: Sequence[str] | None = None,
    channels: int,
    image_size: Sequence[int],
    max_damaged: float | None = 0.01,
    dtype: str | None = None,
    resize: str = "bicubic",
    crop: Sequence[int] | None = None,
) -> tuple[Tensor, Tensor]:
    """Read image files as (N, C, H, W), resized and center-cropped, with the indices (N,) of the readable files.

    For uint8, transparent pixels become white, and 16 bits become 8. "uint16" and "float32" require grayscale files, since
    Pillow reads color files with 8 bits; uint16 scales 8 bits to 16, float32 keeps the files' own values. Damaged files are
    skipped with a warning.

    Args:
        files: paths, or open files.
        names: the files' names in messages; None for their paths.
        channels: 1 or 3.
        image_size: (height, width).
        max_damaged: see `check_damaged`; None refuses the first damaged file.
        dtype: "uint8" (None), "uint16" or "float32".
        resize: "bicubic", "bilinear" or "box_bicubic", see `Fit`.
        crop: [left, top, width, height] to cut out before resizing; None for all.

    Raises:
        UserError: for too many damaged files, or more images than fit in memory.
    """
    fit = Fit.of(image_size, resize, crop)
    require("data.dataset.max_damaged", max_damaged, "[0, 1]", optional=True)
    values = Values(dtype or "uint8")
    check_size(len(files), channels, image_size, values)
    names = [str(path) for path in files] if names is None else names
    if values.dtype != "uint8":
        require_one_of("data.channels", channels, (1,), hint=f"color files are read with 8 bits, not as {values.dtype}")

    def read(file: Path | IO[bytes], name: str) -> np.ndarray | None:
        try:
            return read_image(file, channels, fit, dtype=values.dtype)
        except UserError as error:
            raise UserError(f"{name} {error}") from error
        except ValueError as error:
            if max_damaged is None:
                raise UserError(f"{name} must be an image file, but cannot be read ({error})") from error
            log.warning("%s is damaged and skipped (%s)", name, error)
            return None

    with ThreadPoolExecutor() as pool:  # Pillow releases the GIL while decoding
        arrays = list(pool.map(read, files, names))
    damaged = [name for name, array in zip(names, arrays, strict=True) if array is None]
    check_damaged(len(damaged), len(files), max_damaged or 0.0, example=", ".join(damaged[:1]))
    images = torch.from_numpy(np.stack([array for array in arrays if array is not None]))
    kept = [i for i, array in enumerate(arrays) if array is not None]
    return images.permute(0, 3, 1, 2).contiguous().to(values.memory), torch.tensor(kept)


def check_damaged(damaged: int, total: int, max_damaged: float, *, example: str) -> None:
    """Refuse a dataset with too many damaged images.

    Args:
        damaged: the number of damaged images.
        total: the number of images.
        max_damaged: the largest fraction that may be damaged.
        example: the name of a damaged image.

    Raises:
        UserError: for a larger fraction, or if all are damaged.
    """
    allowed = min(max_damaged * total, total - 1)
    if damaged > allowed:
        raise UserError(
            f"{damaged} of {total} images {'is' if damaged == 1 else 'are'} damaged, such as {example}: fix or remove them "
            f"(data.dataset.max_damaged={max_damaged} allows {int(allowed)})"
        )


def read_image(file: Path | IO[bytes], channels: int, fit: Fit, *, dtype: str = "uint8") -> np.ndarray:
    """Read one image file as (H, W, C), see `read_images`.

    Args:
        file: the file.
        channels: 1 or 3.
        fit: crops and resizes.
        dtype: "uint8", "uint16" or "float32".

    Raises:
        ValueError: for a damaged file, with the reason in one line.
        UserError: for a file that does not match the dtype.
    """
    try:
        with open_image(file) as image:
            return _as_bytes(image, channels, fit) if dtype == "uint8" else _as_levels(image, fit, dtype)
    except UserError:
        raise
    except Exception as error:  # Pillow's decoders raise many types on damaged bytes
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from error


def _as_bytes(image: Image.Image, channels: int, fit: Fit) -> np.ndarray:
    kind = image.format  # lost by a copy
    image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        low, high = image.getextrema()
        raise UserError(f"holds real numbers from {low:.6g} to {high:.6g}: set data.dtype=float32 and data.value_range")
    if image.mode == "I" and kind not in ("PNG", "PPM"):
        low, high = image.getextrema()
        raise UserError(
            f"holds 32-bit integers from {low} to {high}: set data.dtype=float32 and data.value_range, or data.dtype=uint16 for 16 bits"
        )
    if image.mode.startswith("I"):  # 16 bits in 32: Pillow would cut them off at 255
        levels = np.asarray(image).clip(0, 65535).astype(np.uint16)  # n/257, rounded: there are no halves
        image = Image.fromarray(((levels + np.uint32(128)) // np.uint32(257)).astype(np.uint8))
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = fit(image.convert("L" if channels == 1 else "RGB"))
    return np.asarray(image).reshape(image.height, image.width, channels)


def _as_levels(image: Image.Image, fit: Fit, dtype: str) -> np.ndarray:
    """A grayscale image at full bit depth."""
    image = ImageOps.exif_transpose(image)
    if image.mode not in ("L", "F") and not image.mode.startswith("I"):
        raise UserError(f"is a color image ({image.mode}), which can only be read with 8 bits: set data.dtype=uint8")
    levels = np.asarray(image).astype(np.float32)
    if dtype == "uint16":
        levels *= 257 if image.mode == "L" else 1
        if image.mode == "F" or levels.min() < 0 or levels.max() > 65535:
            raise UserError(f"holds values from {levels.min():.6g} to {levels.max():.6g}: set data.dtype=float32")
    if image.size != fit.size or fit.crop is not None:
        levels = np.asarray(fit(Image.fromarray(levels)))
    if dtype == "uint16":
        levels = levels.round().clip(0, 65535).astype(np.uint16)
    return levels[..., None]
