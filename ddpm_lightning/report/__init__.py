"""What a sweep of `train.py` ends in: one page that says which setting is best, and by how much."""

from ddpm_lightning.report.writing import write_report

__all__ = ["write_report"]
