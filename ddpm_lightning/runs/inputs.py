"""The image files that `sample.py edit=...` reads: images and masks."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import ImageOps
from torch import Tensor

from ddpm_lightning.data.fitting import Fit
from ddpm_lightning.data.folders import find_images
from ddpm_lightning.data.image_files import read_image, read_images
from ddpm_lightning.errors import UserError, brief
from ddpm_lightning.images import open_image
from ddpm_lightning.runs.sampling_setup import SamplingSetup

__all__ = ["Inputs", "read_inputs", "read_masks"]


class Inputs(NamedTuple):
    """Image files, their names without folder and extension, and their images (N, C, H, W) in [−1, 1]."""

    files: Sequence[Path]
    names: Sequence[str]
    images: Tensor


def read_inputs(given: str | Sequence[str] | None, setup: SamplingSetup, sides: Sequence[int] | None = None) -> Inputs:
    """Read an image file, a list of them or a folder, resized and cropped as the run's own images.

    Args:
        given: the file, files or folder.
        setup: whose model takes the images.
        sides: (height, width), the model's by default.

    Raises:
        UserError: for missing or damaged files, or a model of other data than images.
    """
    shape = setup.shape
    if len(shape) != 3 or shape[0] not in (1, 3):
        raise UserError(f"edit requires a model of images with 1 or 3 channels, got {setup.kind} shaped {list(shape)}")
    files = [
        file for path in ([given] if isinstance(given, str) else given or []) for file in _files(path, "edit.input")
    ]
    if not files:
        raise UserError("edit.input must be an image file or a folder of images, got null: give edit.input=FILE")
    size, dtype = sides or shape[1:], setup.values.dtype
    images, _ = read_images(files, channels=shape[0], image_size=size, max_damaged=None, dtype=dtype)
    return Inputs(files, [file.stem for file in files], setup.values.normalize(images))


def read_masks(given: str, inputs: Inputs, setup: SamplingSetup) -> Tensor:
    """Where images are filled in, (N, 1, H, W): the white part of a mask for all, or of one for each, of the same name.

    Raises:
        UserError: for a mask that is missing, damaged or of another size than its image, or has no white or no black.
    """
    found = _files(given, "edit.mask")
    of_name = {file.stem: file for file in found}
    if Path(given).is_dir() and (missing := [name for name in inputs.names if name not in of_name]):
        raise UserError(f"edit.mask={given} must hold a mask for each image, and has none named {missing[0]}")
    height, width = setup.shape[1:]
    masks = []
    for file, name in zip(inputs.files, inputs.names, strict=True):
        mask = of_name[name] if Path(given).is_dir() else found[0]
        mask_size, size = _size(mask), _size(file)
        if mask_size not in (size, (width, height)):
            raise UserError(
                f"edit.mask={mask} must be as large as {file}, {size[0]} x {size[1]} pixels, or as the model's images, {width} x {height}, "
                f"got {mask_size[0]} x {mask_size[1]}"
            )
        masks.append(torch.from_numpy(read_image(mask, 1, Fit((width, height))).copy()).permute(2, 0, 1) > 127)
        if not masks[-1].any() or masks[-1].all():
            raise UserError(
                f"edit.mask={mask} must be white where the image is filled in and black elsewhere, but is a single color"
            )
    return torch.stack(masks)


def _files(path: str, key: str) -> list[Path]:
    """The image files that a path means.

    Raises:
        UserError: where there are none.
    """
    place = Path(path).expanduser()
    found = find_images(place)[0] if place.is_dir() else [place]
    if not found or not found[0].is_file():
        raise UserError(
            f"{key} must be an image file or a folder of images, got {path}, which {'has none' if place.is_dir() else 'does not exist'}"
        )
    return found


def _size(file: Path) -> tuple[int, int]:
    """(width, height) as shown."""
    try:
        with open_image(file) as image:
            return ImageOps.exif_transpose(image).size
    except Exception as error:  # Pillow's decoders raise many types on damaged bytes
        raise UserError(f"{file} cannot be read ({brief(error)}): give an image file") from error
