"""Conditions from files and from images: what a model is given besides x_t and t."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ddpm_lightning.data.loaders import ImageSet
from ddpm_lightning.data.source import Condition
from ddpm_lightning.errors import UserError
from ddpm_lightning.files import replace_file
from ddpm_lightning.images import from_uint8
from ddpm_lightning.ranges import require

__all__ = ["load_array", "load_condition", "low_resolution", "save_condition"]


def low_resolution(dataset: Callable[..., ImageSet], *, factor: int = 2, root: str | None = None) -> ImageSet:
    """A dataset of 8-bit images, each conditioned on itself made smaller: float32 (N, C, H/factor, W/factor) in [−1, 1].

    A pixel of the small image is the mean of factor×factor ones (Saharia et al. 2021, Image Super-Resolution via Iterative
    Refinement, trains on such pairs).

    Args:
        dataset: gives the images.
        factor: by which the sides are divided.
        root: the folder that the dataset is called with; None for one without.

    Raises:
        UserError: for sides that it does not divide.
    """
    require("data.dataset.factor", factor, "2..64")
    images = (dataset() if root is None else dataset(root=root)).images
    if images.shape[-1] % factor or images.shape[-2] % factor:
        size = [*images.shape[-2:]]
        raise UserError(f"data.dataset.factor must divide both sides of the images, {size}, got {factor}")
    return ImageSet(images, F.avg_pool2d(from_uint8(images), factor))


def load_condition(path: str | Path, *, key: str = "condition") -> Condition:
    """Conditions from a file: an array with a row for each sample (.npy), or several by name (.npz).

    Integers become int64, those of one axis are labels; all else becomes float32.

    Args:
        path: the file.
        key: the setting that names it, for errors.

    Raises:
        UserError: for a file that is missing, damaged or of another kind, and rows that are not as many in all arrays.
    """
    found = load_array(path, key=key)
    tensors = {name: _tensor(name, array, path, key) for name, array in found.items()}
    if len({len(tensor) for tensor in tensors.values()}) != 1:
        rows = ", ".join(f"{name} has {len(tensor)}" for name, tensor in tensors.items())
        raise UserError(f"{key}={path} must have the same number of rows in all arrays: {rows}")
    return tensors[""] if [*tensors] == [""] else tensors


def save_condition(condition: Condition, path: Path) -> None:
    """Write conditions as `load_condition` reads them, to a .npy file, or a .npz file for several by name; atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replace_file(path, "wb") as file:
        if isinstance(condition, Mapping):
            np.savez(file, **{name: value.cpu().numpy() for name, value in condition.items()})  # type: ignore[arg-type]
        else:
            np.save(file, condition.cpu().numpy())


def load_array(path: str | Path, *, key: str) -> dict[str, np.ndarray[Any, Any]]:
    """The arrays of a .npz file by name, or that of a .npy file by the name ""; none that hold Python objects, which could run code.

    Raises:
        UserError: for a file that is missing, damaged or of another kind.
    """
    try:
        with Path(path).open("rb") as raw:
            found = np.load(raw, allow_pickle=False)
            arrays = {"": found} if isinstance(found, np.ndarray) else {name: found[name] for name in found.files}
        if not arrays or any(array.dtype.kind not in "biuf" for array in arrays.values()):
            raise ValueError("not numeric")
    except Exception as error:  # numpy raises what it comes upon
        why = error.strerror if isinstance(error, OSError) and error.strerror else "damaged or not a NumPy file"
        raise UserError(f"{key}={path} cannot be read ({why}): give a numeric .npy or .npz file") from error
    return {name: array.astype(array.dtype.newbyteorder("="), copy=False) for name, array in arrays.items()}


def _tensor(name: str, array: np.ndarray[Any, Any], path: str | Path, key: str) -> Tensor:
    if not array.ndim or not len(array):
        raise UserError(f"{key}={path} must have one row per sample, but {name or 'the array'} has none")
    if array.dtype.kind in "iu":
        return torch.from_numpy(array.astype(np.int64))
    if not np.isfinite(array).all():
        raise UserError(f"{key}={path} must hold finite numbers, but {name or 'the array'} has NaN or infinite values")
    return torch.from_numpy(array.astype(np.float32))
