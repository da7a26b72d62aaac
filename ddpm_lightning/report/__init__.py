"""Reports that compare the settings of a sweep or folder of runs, also in W&B."""

from ddpm_lightning.report.publishing import report_sweep, report_with_dashboard
from ddpm_lightning.report.writing import write_report

__all__ = ["report_sweep", "report_with_dashboard", "write_report"]
