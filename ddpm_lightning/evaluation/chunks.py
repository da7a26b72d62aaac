"""Work that is done in shards, each kept on the disk, so that what was interrupted goes on where it stopped."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ddpm_lightning.errors import UserError
from ddpm_lightning.files import check_zip, replace_file
from ddpm_lightning.runs.process_group import Ranks

__all__ = ["compute_chunks", "missing_chunks", "read_chunks"]

Arrays = dict[str, np.ndarray]


def compute_chunks(
    folder: Path, count: int, size: int, compute: Callable[[range], dict[str, Tensor]], mine: Ranks
) -> None:
    """Compute the shards that the folder lacks, each of `size` of the `count` items, this rank's turn of them; then wait for the other ranks.

    Args:
        folder: a folder that all ranks see.
        count: the number of items.
        size: items in a shard.
        compute: from the items' numbers to arrays with a row for each.
        mine: this rank.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for items in missing_chunks(folder, count, size, mine):
        arrays = {name: tensor.numpy() for name, tensor in compute(items).items()}
        with replace_file(_path(folder, items), "wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
    mine.wait()


def missing_chunks(folder: Path, count: int, size: int, mine: Ranks | None = None) -> list[range]:
    """The shards that are not there, or damaged, in order; of those that are a rank's turn by their number, whoever looks and when."""
    mine = mine or Ranks()
    return [items for items in _shards(count, size)[mine.rank :: mine.world_size] if _load(folder, items) is None]


def read_chunks(folder: Path, count: int, size: int) -> dict[str, Tensor]:
    """All shards, put together.

    Raises:
        UserError: where one is not there.
    """
    parts: list[Arrays] = []
    for items in _shards(count, size):
        part = _load(folder, items)
        if part is None or part.keys() != (parts or [part])[0].keys():
            what = "damaged" if _path(folder, items).exists() else "missing"
            raise UserError(
                f"{_path(folder, items)} is {what}: let all processes see one folder (out_dir=, cache_dir=), and start again"
            )
        parts.append(part)
    return {name: torch.from_numpy(np.concatenate([part[name] for part in parts])) for name in parts[0]}


def _shards(count: int, size: int) -> list[range]:
    return [range(first, min(first + size, count)) for first in range(0, count, size)]


def _path(folder: Path, items: range) -> Path:
    return folder / f"{items.start:06d}-{items.stop - 1:06d}.npz"


def _load(folder: Path, items: range) -> Arrays | None:
    """A shard's arrays; None where it is not there, is damaged, or has another number of rows than of items."""
    path = _path(folder, items)
    try:
        check_zip(path)
        with path.open("rb") as raw, np.load(raw) as file:  # numpy leaves the file of a damaged one open
            arrays = {name: file[name] for name in file.files}
    except Exception:  # numpy raises what it comes upon
        return None
    return arrays if arrays and all(a.ndim and len(a) == len(items) for a in arrays.values()) else None
