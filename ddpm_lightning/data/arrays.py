"""Arrays of any shape from .npy files: signals, volumes, videos, latents."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from ddpm_lightning.data.conditions import load_array, load_condition
from ddpm_lightning.data.loaders import ImageSet
from ddpm_lightning.errors import UserError
from ddpm_lightning.ranges import require_one_of

__all__ = ["arrays"]

_READ = ("uint8", "uint16", "int16", "int32", "int64", "float16", "float32", "float64")


def arrays(
    root: str | Path, *, channels: int, image_size: Sequence[int], condition: str | Path | None = None
) -> ImageSet:
    """Load samples (N, C, ...) from a .npy file, or from a folder of .npy files (C, ...) in order of their names.

    If C is 1, its axis may be missing. 64-bit values become 32-bit.

    Args:
        root: the file or folder.
        channels: C.
        image_size: (length,), (height, width) or (frames, height, width).
        condition: a file with one row per sample: labels, embeddings or images, see `load_condition`.

    Raises:
        UserError: for files that cannot be read or have another shape or dtype.
    """
    root = Path(root)
    paths = sorted(root.glob("*.npy")) if root.is_dir() else [root]
    if not paths:
        raise UserError(f"data.root must be a .npy file, or a folder of .npy files, got {root}")
    shape = (channels, *image_size)
    values = np.concatenate([_read(path, shape, batch=not root.is_dir()) for path in paths])
    if values.dtype in (np.dtype(np.float16), np.dtype(np.float64)):
        values = values.astype(np.float32)
    if values.dtype == np.uint16:  # not every device computes in uint16
        values = values.astype(np.int32)
    images = torch.from_numpy(values)
    if condition is None:
        return ImageSet(images, torch.zeros(len(images), dtype=torch.long), None)
    return ImageSet(images, load_condition(condition, key="data.dataset.condition"))


def _read(path: Path, shape: tuple[int, ...], *, batch: bool) -> np.ndarray:
    """The samples of a file, (N, C, ...); N is 1 for a file in a folder."""
    found = load_array(path, key="data.root")
    require_one_of(
        f"the dtype of data.root={path}", str(next(iter(found.values())).dtype), _READ, hint="convert the file"
    )
    if [*found] != [""]:
        raise UserError(f"data.root={path} must hold one array, got several: save the one to train on as a .npy file")
    values = found[""] if batch else found[""][None]
    if shape[0] == 1 and values.shape[1:] == shape[1:]:
        values = values[:, None]
    if values.shape[1:] != shape or not len(values):
        wanted = ", ".join(map(str, shape))
        raise UserError(
            f"data.root={path} must have shape {'(N, ' if batch else '('}{wanted}) to match data.channels and data.image_size, got "
            f"{found[''].shape}"
        )
    return values
