"""metrics.csv: the scalars of a run, one row per logged step, whatever other logger is in use."""

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
    """Appends to `<folder>/metrics.csv`; each row is on disk when it is written, and none is deleted but by `rewind`.

    A metric that is new gets a column of its own: the file is then written anew beside itself and put in its place.

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
        """Nothing: the run folder holds config.yaml."""

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
        """Keep the first `rows` rows, those before the checkpoint that a run goes on from, and the columns that they use."""
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
