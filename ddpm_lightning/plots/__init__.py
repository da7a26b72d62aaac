"""Plots; the only package that imports matplotlib."""

from ddpm_lightning.plots.curves import Curve, draw_bits_by_step, draw_comparison, draw_curve, draw_curves
from ddpm_lightning.plots.points import Panel, draw_points
from ddpm_lightning.plots.schedules import FAMILIES, draw_schedule, draw_schedules
from ddpm_lightning.plots.style import LOWER, line_style

__all__ = [
    "FAMILIES",
    "LOWER",
    "Curve",
    "Panel",
    "draw_bits_by_step",
    "draw_comparison",
    "draw_curve",
    "draw_curves",
    "draw_points",
    "draw_schedule",
    "draw_schedules",
    "line_style",
]
