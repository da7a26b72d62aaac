"""Plots; the only package that imports matplotlib."""

from ddpm_lightning.plots.curves import Curve, draw_bits_by_step, draw_curve, draw_curves, draw_study
from ddpm_lightning.plots.points import Panel, draw_points
from ddpm_lightning.plots.schedules import FAMILIES, draw_schedule, draw_schedules
from ddpm_lightning.plots.style import LOWER, line_style

__all__ = [
    "FAMILIES",
    "LOWER",
    "Curve",
    "Panel",
    "draw_bits_by_step",
    "draw_curve",
    "draw_curves",
    "draw_points",
    "draw_schedule",
    "draw_schedules",
    "draw_study",
    "line_style",
]
