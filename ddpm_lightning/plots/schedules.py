"""Plots of noise schedules."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from ddpm_lightning import schedules
from ddpm_lightning.errors import below
from ddpm_lightning.plots.style import line_style, pixels, save, styled
from ddpm_lightning.ranges import require
from ddpm_lightning.schedules import NoiseSchedule, families

__all__ = ["FAMILIES", "draw_schedule", "draw_schedules"]


def _families() -> Iterator[tuple[str, Callable[[int], NoiseSchedule]]]:
    """The schedules with default settings, in order of definition, and two that require a value."""
    for name in (name for name in vars(families) if name in families.__all__):
        family = getattr(families, name)
        given = [p.name for p in inspect.signature(family).parameters.values() if p.default is p.empty]
        if not given:
            yield name, family
        elif given == ["image_size"]:
            yield f"{name}, image_size=256", partial(family, image_size=256)
        if name == "linear":
            yield "linear_zero_snr", lambda num_steps: schedules.rescale_zero_terminal_snr(schedules.linear(num_steps))


FAMILIES = dict(_families())


@styled
def draw_schedules(path: Path, *, num_steps: int = 1000) -> None:
    """Plot ᾱ_t, log SNR and β_t of all schedule families with their defaults, side by side.

    Raises:
        UserError: if num_steps is less than 2 or too large for a family, or the file cannot be written.
    """
    require("num_steps", num_steps, "2..")
    made = {}
    for name, family in FAMILIES.items():
        with below(f"num_steps={num_steps}: {name}"):
            made[name] = family(num_steps)
    figure = _schedules(made)
    figure.legend(loc="outside lower center", ncols=5, fontsize=11)
    save(figure, path)


@styled
def draw_schedule(schedule: NoiseSchedule) -> Tensor:
    """Plot ᾱ_t, log SNR and β_t of one schedule side by side: uint8 (3, H, W)."""
    return pixels(_schedules({"": schedule}))


def _schedules(made: Mapping[str, NoiseSchedule]) -> Figure:
    figure = Figure(figsize=(15, 6.2), dpi=120) if len(made) > 1 else Figure(figsize=(15, 4.4), dpi=80)
    left, middle, right = figure.subplots(1, 3)
    for index, (name, schedule) in enumerate(made.items()):
        alpha_bar, log_snr = (table.cpu().double() for table in (schedule.alpha_bar, schedule.log_snr))
        t = torch.arange(len(alpha_bar))
        color, dashes = line_style(index)
        style: dict[str, Any] = {"color": color, "linestyle": dashes}
        left.plot(t, alpha_bar, label=name, **style)
        middle.plot(t[1:], log_snr[1:], **style)  # ∞ at t = 0
        right.plot(t[1:], schedule.betas, **style)
    limits = {"xlabel": "timestep t", "xlim": (0, len(alpha_bar) - 1)}
    left.set(title="Share of the signal in the variance", ylabel="ᾱ", **limits)
    middle.set(title="Signal-to-noise ratio", ylabel="log SNR = ln ᾱ/(1 − ᾱ)", **limits)
    right.set(title="Variance of the noise of one step", ylabel="β", yscale="log", **limits)
    return figure
