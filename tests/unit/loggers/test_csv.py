"""metrics.csv: whole rows on the disk at once, and columns for new metrics."""

import csv

import pytest
import torch

from ddpm_lightning.loggers import CSVLogger

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*treespec"),
    pytest.mark.filterwarnings("ignore:.*no `val_dataloader`"),
]


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_csv_rows_are_on_disk_at_once_and_new_metrics_get_columns(tmp_path):
    logger = CSVLogger(tmp_path / "run")
    logger.log_metrics({"a": 1.5}, step=1)
    assert rows(logger.path) == [{"step": "1", "a": "1.5"}]
    logger.log_metrics({"b": torch.tensor(2.0)}, step=2)
    logger.log_metrics({"a": 3.0}, step=3)
    assert rows(logger.path) == [
        {"step": "1", "a": "1.5", "b": ""},
        {"step": "2", "a": "", "b": "2.0"},
        {"step": "3", "a": "3.0", "b": ""},
    ]


def test_csv_goes_on_in_the_same_file(tmp_path):
    CSVLogger(tmp_path).log_metrics({"a": 1.0}, step=1)
    CSVLogger(tmp_path).log_metrics({"b": 2.0}, step=2)
    assert [row["step"] for row in rows(tmp_path / "metrics.csv")] == ["1", "2"]
