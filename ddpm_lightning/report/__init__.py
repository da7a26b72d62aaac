"""What a sweep of `train.py` ends in: one page that says which setting is best, and by how much; the same in W&B."""

from ddpm_lightning.report.dashboard import report_sweep, report_with_dashboard
from ddpm_lightning.report.writing import write_report

__all__ = ["report_sweep", "report_with_dashboard", "write_report"]
