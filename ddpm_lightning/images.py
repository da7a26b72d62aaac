"""[-1, 1] <-> uint8, grids, saving, and one noise seed per image."""

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import IO

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torchvision.utils import make_grid

from ddpm_lightning.data.source import Condition, in_turn, is_labels
from ddpm_lightning.files import replace_file
from ddpm_lightning.seeds import derive

__all__ = [
    "SeededNoise",
    "as_pictures",
    "cells",
    "contact_sheet",
    "from_uint8",
    "grid",
    "open_image",
    "readable_endings",
    "rows_by_label",
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
]  # of channels

# What Pillow knows by name and reads by other programs only, or not at all, and what is no picture.
_UNREADABLE = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "PDF", "WMF"}


@cache
def readable_endings() -> Mapping[str, str]:
    """The endings of the files that Pillow reads by itself, with their formats; with the package pillow-heif .heic is one."""
    with suppress(ImportError):
        import pillow_heif

        pillow_heif.register_heif_opener()
    known = Image.registered_extensions()  # which imports Pillow's readers
    return {ending: name for ending, name in known.items() if name in Image.OPEN and name not in _UNREADABLE}


def from_uint8(images: Tensor) -> Tensor:
    """0..255 to float32 in [−1, 1]: x = v/127.5 − 1."""
    return images.float() / 127.5 - 1


def to_uint8(x: Tensor) -> Tensor:
    """[−1, 1] to 0..255, clipped and rounded to the nearest."""
    return ((x.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def grid(images: Tensor, *, columns: int | None = None, cell: int = 32, gap: int = 2, grey: int = 0) -> Tensor:
    """A contact sheet (C, H, W) of uint8 images (N, C, H, W), each enlarged by a whole factor to at least `cell` pixels.

    It is nearly square where `columns` is not given; the images are framed by lines of `gap` pixels of the gray level `grey`.
    """
    factor = _factor(images.shape[-2:], cell)
    enlarged = images.cpu().repeat_interleave(factor, -1).repeat_interleave(factor, -2)
    return make_grid(enlarged, nrow=columns or math.ceil(math.sqrt(len(images))), padding=gap, pad_value=grey)


def cells(sheet: Tensor, image_size: Sequence[int], *, cell: int = 32) -> Tensor:
    """(N, C, H, W) the enlarged images of a contact sheet (C, H', W') that `grid` made, row by row, with its empty cells."""
    height, width = (_factor(image_size, cell) * side for side in image_size)
    if sheet.shape[1:] == (height, width):
        return sheet[None]  # one image has no frame
    rows = sheet[:, 2:, 2:].unfold(1, height, height + 2).unfold(2, width, width + 2)
    return rows.flatten(1, 2).transpose(0, 1)


def _factor(image_size: Sequence[int], cell: int) -> int:
    return max(1, -(-cell // max(image_size)))


def as_pictures(x: Tensor) -> Tensor:
    """Pictures, uint8 (N, 1 or 3, H, W), of samples (N, C, ...) in [−1, 1] of any shape.

    Signals (N, C, L) are drawn as curves, a color for each channel; the frames of videos (N, C, T, H, W) stand side by side, and so
    do channels of any other number than 1 and 3.
    """
    if x.ndim == 3:
        return _curves(x)
    if x.ndim == 5:
        x = x.permute(0, 1, 3, 2, 4).flatten(3)
    if x.shape[1] not in (1, 3):
        x = x.permute(0, 2, 1, 3).flatten(2)[:, None]
    return to_uint8(x)


def _curves(x: Tensor, height: int = 65) -> Tensor:
    """Curves on black, each below the former ones: a column holds its value and the way to the next one."""
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


def contact_sheet(samples: Tensor, condition: Condition | None = None) -> Tensor:
    """A contact sheet of samples (N, C, ...) in [−1, 1], which condition number i % M of M belongs to.

    With labels it has a row for each; an image condition stands left of its sample, in the sample's size.
    """
    pictures = as_pictures(samples)
    if condition is None:
        return grid(pictures)
    if is_labels(condition):
        return rows_by_label(pictures, len(condition))
    if not isinstance(condition, Tensor) or condition.ndim != 4 or samples.ndim != 4:
        return grid(pictures)
    given = as_pictures(in_turn(condition, range(len(samples))).to(samples.device))
    given = F.interpolate(given, size=[*pictures.shape[2:]], mode="nearest")
    channels = max(given.shape[1], pictures.shape[1])
    pairs = torch.stack([part.expand(-1, channels, -1, -1) for part in (given, pictures)], dim=1)
    return grid(pairs.flatten(0, 1), columns=2 * _columns(len(samples)))


def _columns(count: int) -> int:
    """Of a nearly square sheet of pairs."""
    return max(1, round(math.sqrt(count / 2)))


def rows_by_label(images: Tensor, num_labels: int) -> Tensor:
    """A contact sheet of images (N, C, H, W) whose labels come in turn: a row for each label, padded with black images.

    With fewer images than labels, a plain grid.
    """
    if len(images) < num_labels:
        return grid(images)
    missing = -len(images) % num_labels
    padded = torch.cat([images, images.new_zeros(missing, *images.shape[1:])])
    rows = padded.unflatten(0, (-1, num_labels)).transpose(0, 1)
    return grid(rows.flatten(0, 1), columns=rows.shape[1])


def open_image(file: Path | IO[bytes]) -> Image.Image:
    """An image file, opened and not decoded.

    Its format must be one of `readable_endings`, whatever its name is: Pillow would pass PostScript on to Ghostscript.

    Raises:
        OSError: for a file of any other format.
        ValueError: for more pixels than `PIL.Image.MAX_IMAGE_PIXELS`.
    """
    image = Image.open(file, formats=sorted({*readable_endings().values()}))
    if image.width * image.height > (Image.MAX_IMAGE_PIXELS or math.inf):
        raise ValueError(f"{image.width} x {image.height} pixels are more than {Image.MAX_IMAGE_PIXELS:,}")
    return image


def save_png(image: Tensor, path: Path) -> None:
    """Write a uint8 image (C, H, W) of 1, 3 or 4 channels as a PNG file, and its folder where that is missing."""
    save_image(image.cpu().numpy(), path)


def save_image(image: np.ndarray, path: Path) -> None:
    """Write an array (C, H, W) as the image file that its ending says: uint8 of 1, 3 or 4 channels, uint16 or float32 of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replace_file(path, "wb") as file:
        _pillow(image).save(file, format=path.suffix[1:])


def save_gif(frames: Sequence[Tensor], path: Path) -> None:
    """Write uint8 images (C, H, W) of 1 or 3 channels as a looping animation of 100 ms a frame, the last one 2 s."""
    path.parent.mkdir(parents=True, exist_ok=True)
    first, *others = (_pillow(frame.cpu().numpy()) for frame in frames)
    times = [100] * len(others) + [2000]
    with replace_file(path, "wb") as file:
        first.save(file, format="gif", save_all=True, append_images=others, duration=times, loop=0)


def _pillow(image: np.ndarray) -> Image.Image:
    array = np.ascontiguousarray(image.transpose(1, 2, 0))
    return Image.fromarray(array.squeeze(-1) if array.shape[-1] == 1 else array)


class SeededNoise:
    """Standard normal noise in which image i's draws depend on (seed, i) only, whatever the batch or the device.

    Called with x of shape (B, ...), it gives the next draw for each of its B images, like x.

    Args:
        seed: the seed of the set of images.
        indices: the images' numbers within that set, one for each image of the batch.
    """

    def __init__(self, seed: int, indices: Iterable[int]):
        self._generators = [torch.Generator().manual_seed(derive(seed, "image", i)) for i in indices]

    def __call__(self, x: Tensor) -> Tensor:
        return self.draw(x.shape[1:]).to(device=x.device, dtype=x.dtype)

    def draw(self, shape: Iterable[int]) -> Tensor:
        """(B, *shape) float32 on the CPU."""
        size = tuple(shape)
        return torch.stack([torch.randn(size, generator=generator) for generator in self._generators])

    def uniform(self) -> Tensor:
        """(B,) draws from [0, 1)."""
        return torch.cat([torch.rand(1, generator=generator) for generator in self._generators])

    def times(self, num_steps: int) -> Tensor:
        """(B,) draws of t from U{1, …, num_steps}."""
        return torch.cat([torch.randint(1, num_steps + 1, (1,), generator=g) for g in self._generators])
