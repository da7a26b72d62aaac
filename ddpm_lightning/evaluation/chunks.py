"""Chunked work, cached on disk, so that interrupted evaluations resume."""

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
    """Arrays with one row per item, in files with a fixed number of rows.

    Args:
        folder: a folder shared by all ranks.
        count: the number of items.
        size: items per chunk; the last chunk may have fewer.
    """

    folder: Path
    count: int
    size: int

    def missing(self, group: ProcessGroup = ALONE) -> list[range]:
        """The items of this rank's missing or damaged chunks, in order."""
        return [items for items in self._ranges()[group.rank :: group.world_size] if self._load(items) is None]

    def compute(self, rows_of: Callable[[range], dict[str, Tensor]], group: ProcessGroup) -> None:
        """Compute this rank's missing chunks, then wait for the other ranks.

        Args:
            rows_of: maps item indices to arrays with one row per item.
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
            UserError: for a missing or damaged chunk.
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
        """A chunk's arrays; None if the file is missing, damaged, or has the wrong number of rows."""
        path = self._path(items)
        try:
            check_zip(path)
            with path.open("rb") as raw, np.load(raw) as file:  # NumPy leaves a damaged file open
                arrays = {name: file[name] for name in file.files}
        except Exception:  # NumPy raises many types
            return None
        return arrays if arrays and all(a.ndim and len(a) == len(items) for a in arrays.values()) else None


def digest(key: Any) -> str:
    """12 hex digits that identify plain data, for names of folders and files."""
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:12]
