"""Reports: one page that compares the settings of a sweep or of any folder of runs, and its copy in W&B."""

from ddpm_lightning.report.publishing import report_sweep, report_with_dashboard
from ddpm_lightning.report.writing import write_report

__all__ = ["report_sweep", "report_with_dashboard", "write_report"]
