"""Conversion between [-1, 1] and uint8, grids, saving, and per-image noise."""

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import IO

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor
from torchvision.utils import make_grid

from ddpm_lightning.files import replace_file
from ddpm_lightning.seeds import derive

__all__ = [
    "SeededNoise",
    "as_pictures",
    "cells",
    "from_uint8",
    "grid",
    "open_image",
    "readable_endings",
    "save_gif",
    "save_image",
    "save_png",
    "to_uint8",
]


_COLORS = [
    (255, 255, 255),
    (80, 170, 255),
    (255, 150, 50),
    (90, 210, 110),
    (230, 100, 200),
    (250, 220, 80),
]  # number of channels

# Formats that Pillow reads only with external programs or not at all, and formats that are not images.
_UNREADABLE = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "PDF", "WMF"}


@cache
def readable_endings() -> Mapping[str, str]:
    """The file extensions that Pillow reads by itself, with their formats; .heic requires the package pillow-heif."""
    with suppress(ImportError):
        import pillow_heif

        pillow_heif.register_heif_opener()
    known = Image.registered_extensions()  # imports Pillow's readers
    return {ending: name for ending, name in known.items() if name in Image.OPEN and name not in _UNREADABLE}


def from_uint8(images: Tensor) -> Tensor:
    """Map 0..255 to float32 in [−1, 1]: x = v/127.5 − 1."""
    return images.float() / 127.5 - 1


def to_uint8(x: Tensor) -> Tensor:
    """Map [−1, 1] to 0..255, clipped and rounded."""
    return ((x.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def grid(images: Tensor, *, columns: int | None = None, cell: int = 32, gap: int = 2, grey: int = 0) -> Tensor:
    """Arrange uint8 images (N, C, H, W) in a grid (C, H, W), each enlarged by an integer factor to at least `cell` pixels.

    The grid is nearly square unless `columns` is given; lines of `gap` pixels of gray level `grey` separate the images.
    """
    factor = _factor(images.shape[-2:], cell)
    enlarged = images.cpu().repeat_interleave(factor, -1).repeat_interleave(factor, -2)
    return make_grid(enlarged, nrow=columns or math.ceil(math.sqrt(len(images))), padding=gap, pad_value=grey)


def cells(sheet: Tensor, image_size: Sequence[int], *, cell: int = 32) -> Tensor:
    """The enlarged images (N, C, H, W) of a grid (C, H', W') made by `grid`, row by row, including empty cells."""
    height, width = (_factor(image_size, cell) * side for side in image_size)
    if sheet.shape[1:] == (height, width):
        return sheet[None]  # a single image has no frame
    rows = sheet[:, 2:, 2:].unfold(1, height, height + 2).unfold(2, width, width + 2)
    return rows.flatten(1, 2).transpose(0, 1)


def _factor(image_size: Sequence[int], cell: int) -> int:
    return max(1, -(-cell // max(image_size)))


def as_pictures(x: Tensor) -> Tensor:
    """Render samples (N, C, ...) in [−1, 1] of any shape as images, uint8 (N, 1 or 3, H, W).

    Signals (N, C, L) become curves, one color per channel; the frames of videos (N, C, T, H, W) are placed side by side, and
    so are channels if there are not 1 or 3.
    """
    if x.ndim == 3:
        return _curves(x)
    if x.ndim == 5:
        x = x.permute(0, 1, 3, 2, 4).flatten(3)
    if x.shape[1] not in (1, 3):
        x = x.permute(0, 2, 1, 3).flatten(2)[:, None]
    return to_uint8(x)


def _curves(x: Tensor, height: int = 65) -> Tensor:
    """Curves on black, later ones behind earlier ones; a column spans its value and the next one."""
    here = ((1 - x.float().clamp(-1, 1)) / 2 * (height - 1)).round()[:, :, None]  # the row of each value
    there = torch.cat([here[..., 1:], here[..., -1:]], dim=-1)
    rows = torch.arange(height, device=x.device)[:, None]
    drawn = (rows >= torch.minimum(here, there)) & (rows <= torch.maximum(here, there))
    colors = torch.tensor(_COLORS if x.shape[1] > 1 else [(255, 255, 255)], dtype=torch.uint8, device=x.device)
    picture = torch.zeros(len(x), 3, height, x.shape[-1], dtype=torch.uint8, device=x.device)
    for channel in reversed(range(x.shape[1])):
        color = colors[channel % len(colors)][None, :, None, None]
        picture = torch.where(drawn[:, channel, None], color, picture)
    return picture


def open_image(file: Path | IO[bytes]) -> Image.Image:
    """Open an image file without decoding it.

    Its format must be one of `readable_endings`, whatever its name: Pillow would pass PostScript to Ghostscript.

    Raises:
        OSError: for a file of any other format.
        ValueError: for more pixels than `PIL.Image.MAX_IMAGE_PIXELS`.
    """
    image = Image.open(file, formats=sorted({*readable_endings().values()}))
    if image.width * image.height > (Image.MAX_IMAGE_PIXELS or math.inf):
        raise ValueError(f"{image.width} x {image.height} pixels are more than {Image.MAX_IMAGE_PIXELS:,}")
    return image


def save_png(image: Tensor, path: Path, facts: Mapping[str, str] | None = None) -> None:
    """Save a uint8 image (C, H, W) with 1, 3 or 4 channels as PNG, creating its folder if needed; see `save_image`."""
    save_image(image.cpu().numpy(), path, facts)


def save_image(image: np.ndarray, path: Path, facts: Mapping[str, str] | None = None) -> None:
    """Save an array (C, H, W) in the format of the file extension: uint8 with 1, 3 or 4 channels, uint16 or float32 with 1.

    Args:
        image: the array.
        path: the file; its folder is created if needed.
        facts: text for the metadata of a PNG, by name; other formats are saved without.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    options = {}
    if path.suffix == ".png":
        options["pnginfo"] = PngInfo()
        for name, text in (facts or {}).items():
            options["pnginfo"].add_text(name.replace("σ", "sigma"), text)  # names are Latin-1
    with replace_file(path, "wb") as file:
        _pillow(image).save(file, format=path.suffix[1:], **options)


def save_gif(frames: Sequence[Tensor], path: Path) -> None:
    """Save uint8 images (C, H, W) with 1 or 3 channels as a looping GIF, with 100 ms per frame and 2 s for the last."""
    path.parent.mkdir(parents=True, exist_ok=True)
    gray = all(bool((frame == frame[:1]).all()) for frame in frames)  # exact, where 256 colors may not be
    first, *others = (_pillow((frame[:1] if gray else frame).cpu().numpy()) for frame in frames)
    times = [100] * len(others) + [2000]
    with replace_file(path, "wb") as file:
        first.save(file, format="gif", save_all=True, append_images=others, duration=times, loop=0)


def _pillow(image: np.ndarray) -> Image.Image:
    array = np.ascontiguousarray(image.transpose(1, 2, 0))
    return Image.fromarray(array.squeeze(-1) if array.shape[-1] == 1 else array)


class SeededNoise:
    """Standard normal noise in which the samples for image i depend on (seed, i) only, not on the batch or device.

    Called with x of shape (B, ...), it returns the next noise for each of its B images, like x.

    Args:
        seed: the seed.
        indices: the images' indices, one per image of the batch.
    """

    def __init__(self, seed: int, indices: Iterable[int]):
        self._generators = [torch.Generator().manual_seed(derive(seed, "image", i)) for i in indices]

    def __call__(self, x: Tensor) -> Tensor:
        return self.draw(x.shape[1:]).to(device=x.device, dtype=x.dtype)

    def draw(self, shape: Iterable[int]) -> Tensor:
        """Standard normal noise (B, *shape), float32 on the CPU."""
        size = tuple(shape)
        return torch.stack([torch.randn(size, generator=generator) for generator in self._generators])

    def uniform(self) -> Tensor:
        """(B,) samples from U[0, 1)."""
        return torch.cat([torch.rand(1, generator=generator) for generator in self._generators])

    def times(self, num_steps: int) -> Tensor:
        """(B,) timesteps from U{1, …, num_steps}."""
        return torch.cat([torch.randint(1, num_steps + 1, (1,), generator=g) for g in self._generators])
