"""Work that is done in chunks, each kept on disk, so that an interrupted evaluation resumes."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddpm_lightning.errors import UserError
from ddpm_lightning.files import check_zip, replace_file
from ddpm_lightning.runs.process_group import ALONE, ProcessGroup

__all__ = ["Chunks", "digest"]


@dataclass(frozen=True)
class Chunks:
    """Arrays with a row for each of some items, in files of a fixed number of rows.

    Args:
        folder: a folder that all ranks see.
        count: the number of items.
        size: items in a chunk; the last one may have fewer.
    """

    folder: Path
    count: int
    size: int

    def missing(self, group: ProcessGroup = ALONE) -> list[range]:
        """The items of each chunk that is missing or damaged, in order, among the chunks that are this rank's."""
        return [items for items in self._ranges()[group.rank :: group.world_size] if self._load(items) is None]

    def compute(self, rows_of: Callable[[range], dict[str, Tensor]], group: ProcessGroup) -> None:
        """Compute this rank's missing chunks, then wait for the other ranks.

        Args:
            rows_of: from the items' numbers to arrays with a row for each.
            group: the ranks that share the chunks.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        for items in self.missing(group):
            arrays = {name: tensor.numpy() for name, tensor in rows_of(items).items()}
            with replace_file(self._path(items), "wb") as file:
                np.savez(file, **arrays)  # type: ignore[arg-type]
        group.wait()

    def read(self) -> dict[str, Tensor]:
        """The rows of all items.

        Raises:
            UserError: for a chunk that is missing or damaged.
        """
        parts: list[dict[str, np.ndarray]] = []
        for items in self._ranges():
            part = self._load(items)
            if part is None or part.keys() != (parts or [part])[0].keys():
                what = "damaged" if self._path(items).exists() else "missing"
                raise UserError(
                    f"{self._path(items)} is {what}: let all processes share one folder (out_dir=, cache_dir=), and run again"
                )
            parts.append(part)
        return {name: torch.from_numpy(np.concatenate([part[name] for part in parts])) for name in parts[0]}

    def _ranges(self) -> list[range]:
        return [range(first, min(first + self.size, self.count)) for first in range(0, self.count, self.size)]

    def _path(self, items: range) -> Path:
        return self.folder / f"{items.start:06d}-{items.stop - 1:06d}.npz"

    def _load(self, items: range) -> dict[str, np.ndarray] | None:
        """A chunk's arrays; None where the file is missing, is damaged, or has another number of rows than of items."""
        path = self._path(items)
        try:
            check_zip(path)
            with path.open("rb") as raw, np.load(raw) as file:  # numpy leaves the file of a damaged one open
                arrays = {name: file[name] for name in file.files}
        except Exception:  # numpy raises what it comes upon
            return None
        return arrays if arrays and all(a.ndim and len(a) == len(items) for a in arrays.values()) else None


def digest(key: Any) -> str:
    """12 digits for plain data, by which folders and files are named."""
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:12]
