"""Conditions from files and images."""

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
    """Condition 8-bit images on their downsampled versions, float32 (N, C, H/factor, W/factor) in [−1, 1], for super-resolution.

    Downsampling averages factor×factor pixels (Saharia et al. 2021, Image Super-Resolution via Iterative Refinement,
    trains on such pairs).

    Args:
        dataset: returns the images.
        factor: the downsampling factor.
        root: the folder passed to the dataset; None for a dataset without one.

    Raises:
        UserError: if the factor does not divide both sides.
    """
    require("data.dataset.factor", factor, "2..64")
    images = (dataset() if root is None else dataset(root=root)).images
    if images.shape[-1] % factor or images.shape[-2] % factor:
        size = [*images.shape[-2:]]
        raise UserError(f"data.dataset.factor must divide both sides of the images, {size}, got {factor}")
    return ImageSet(images, F.avg_pool2d(from_uint8(images), factor))


def load_condition(path: str | Path, *, key: str = "condition") -> Condition:
    """Load conditions from a file: an array with one row per sample (.npy), or several by name (.npz).

    Integers become int64, and one-dimensional ones are labels; other values become float32.

    Args:
        path: the file.
        key: the setting that names the file, for errors.

    Raises:
        UserError: for a file that is missing, damaged or not a NumPy file, or whose arrays differ in their number of rows.
    """
    found = load_array(path, key=key)
    tensors = {name: _tensor(name, array, path, key) for name, array in found.items()}
    if len({len(tensor) for tensor in tensors.values()}) != 1:
        rows = ", ".join(f"{name} has {len(tensor)}" for name, tensor in tensors.items())
        raise UserError(f"{key}={path} must have the same number of rows in all arrays: {rows}")
    return tensors[""] if [*tensors] == [""] else tensors


def save_condition(condition: Condition, path: Path) -> None:
    """Save conditions in the format of `load_condition`, atomically: to a .npy file, or a .npz file for several by name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replace_file(path, "wb") as file:
        if isinstance(condition, Mapping):
            np.savez(file, **{name: value.cpu().numpy() for name, value in condition.items()})  # type: ignore[arg-type]
        else:
            np.save(file, condition.cpu().numpy())


def load_array(path: str | Path, *, key: str) -> dict[str, np.ndarray[Any, Any]]:
    """Load the arrays of a .npz file by name, or the array of a .npy file under the name ""; refuses pickled objects.

    Raises:
        UserError: for a file that is missing, damaged or not a NumPy file.
    """
    try:
        with Path(path).open("rb") as raw:
            found = np.load(raw, allow_pickle=False)
            arrays = {"": found} if isinstance(found, np.ndarray) else {name: found[name] for name in found.files}
        if not arrays or any(array.dtype.kind not in "biuf" for array in arrays.values()):
            raise ValueError("not numeric")
    except Exception as error:  # NumPy raises many types
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
