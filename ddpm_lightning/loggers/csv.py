"""metrics.csv: a run's scalars, one row per logged step, independent of other loggers."""

import csv
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from ddpm_lightning.errors import UserError, brief
from ddpm_lightning.files import replace_file

__all__ = ["CSVLogger"]


class CSVLogger(Logger):
    """Appends rows to `<folder>/metrics.csv`, each flushed to disk; only `rewind` deletes rows.

    A new metric adds a column, for which the file is rewritten atomically.

    Args:
        folder: the run folder.
    """

    def __init__(self, folder: str | Path):
        super().__init__()
        self.path = Path(folder) / "metrics.csv"
        self.rows = 0
        self._columns: list[str] = []

    @property
    def name(self) -> str:
        return "csv"

    @property
    def version(self) -> str:
        return ""

    @property
    def save_dir(self) -> str:
        return str(self.path.parent)

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the run folder holds config.yaml."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        row = {"step": step, **{key: float(value) for key, value in metrics.items()}}
        if not row.keys() <= {*self._columns}:
            rows = self._read()
            self.rows, self._columns = len(rows), list(dict.fromkeys([*(rows[0] if rows else ()), *row]))
            self._rewrite(rows)
        with self.path.open("a", newline="") as file:
            csv.DictWriter(file, self._columns).writerow(row)
        self.rows += 1

    @rank_zero_only
    def rewind(self, rows: int) -> None:
        """Keep only the first `rows` rows, up to the checkpoint that a run resumes from, and the columns they use."""
        kept = self._read()[:rows]
        self.rows, self._columns = len(kept), [key for key in kept[0] if any(row[key] for row in kept)] if kept else []
        if self.path.exists():
            self._rewrite(kept)

    def _read(self) -> list[dict[str, str]]:
        if not self.path.exists():
            return []
        try:
            with self.path.open(newline="") as file:
                return list(csv.DictReader(file))
        except (ValueError, csv.Error) as error:
            raise UserError(
                f"{self.path} cannot be read ({brief(error)}): remove it to continue without its rows"
            ) from error

    def _rewrite(self, rows: list[dict[str, str]]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with replace_file(self.path, newline="") as file:
            writer = csv.DictWriter(file, self._columns, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(rows)
