"""Plots; the only module that imports matplotlib."""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from io import BytesIO
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator
from numpy.typing import NDArray
from torch import Tensor

from ddpm_lightning import schedules
from ddpm_lightning.errors import UserError, below
from ddpm_lightning.files import replace_file
from ddpm_lightning.ranges import require
from ddpm_lightning.schedules import NoiseSchedule, families

__all__ = [
    "FAMILIES",
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

_COLORS = (  # the colorblind-safe palette of Okabe & Ito, without yellow
    "#0072B2",
    "#E69F00",
    "#000000",
    "#56B4E9",
    "#D55E00",
    "#009E73",
    "#CC79A7",
)
_INSIDE = 4  # a legend fits inside a small plot up to this number of curves, and letters per name
_SHORT = 24

Array = NDArray[np.floating[Any]]


def line_style(index: int) -> tuple[str, str]:
    """Color and dashes of a curve by index; neighbors differ in both, so that overlapping curves stay visible."""
    return _COLORS[index % 7], ("-", "--", ":")[index % 3]


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
    figure.legend(loc="outside lower center", ncols=5, frameon=False, fontsize=11)
    _save(figure, path)


def draw_schedule(schedule: NoiseSchedule) -> Tensor:
    """Plot ᾱ_t, log SNR and β_t of one schedule side by side: uint8 (3, H, W)."""
    return _pixels(_schedules({"": schedule}))


def _schedules(made: Mapping[str, NoiseSchedule]) -> Figure:
    figure = Figure(figsize=(15, 6.2 if len(made) > 1 else 4.6), layout="constrained", dpi=80)
    left, middle, right = figure.subplots(1, 3)
    for index, (name, schedule) in enumerate(made.items()):
        alpha_bar, log_snr = (table.cpu().double() for table in (schedule.alpha_bar, schedule.log_snr))
        t = torch.arange(len(alpha_bar))
        color, dashes = line_style(index)
        style: dict[str, Any] = {"color": color, "linestyle": dashes, "linewidth": 1.8}
        left.plot(t, alpha_bar, label=name, **style)
        middle.plot(t[1:], log_snr[1:], **style)  # ∞ at t = 0
        right.plot(t[1:], schedule.betas, **style)
    last = len(alpha_bar) - 1
    _frame(left, xlabel="t", xlim=(0, last), title="ᾱ: the signal's share of the variance")
    _frame(middle, xlabel="t", xlim=(0, last), title="log SNR = log ᾱ/(1 − ᾱ)")
    _frame(right, xlabel="t", xlim=(0, last), title="β: the noise of one step", yscale="log")
    return figure


def draw_bits_by_step(path: Path, bits: Sequence[float]) -> None:
    """Plot the bound's term at each t = 1..T in bits per dimension, and the cumulative sum.

    Raises:
        UserError: if the file cannot be written.
    """
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    t = range(1, len(bits) + 1)
    left.plot(t, bits, color="#0072B2")
    right.plot(t, list(accumulate(bits)), color="#D55E00")
    _frame(left, xlabel="t", xlim=(0, len(bits)), title="bits/dim of the step at t", yscale="log")
    _frame(right, xlabel="t", xlim=(0, len(bits)), title="cumulative sum over 1..t")
    _save(figure, path)


def draw_study(path: Path, curves: Mapping[str, Sequence[tuple[float, float, float]]], *, metric: str) -> None:
    """Plot a metric against network evaluations per image, one curve per sampler, on logarithmic axes.

    Args:
        path: the file.
        curves: (evaluations, value, deviation) by sampler.
        metric: the axis label.

    Raises:
        UserError: if the file cannot be written.
    """
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for index, (name, points) in enumerate(curves.items()):
        color, dashes = line_style(index)
        x, y, deviation = zip(*sorted(points), strict=True)
        axes.errorbar(x, y, deviation, label=name, color=color, linestyle=dashes, marker="o", markersize=5, capsize=3)
    _frame(axes, xlabel="network evaluations per image", ylabel=metric, xscale="log", yscale="log")
    ticks: list[float] = []
    for tick in sorted({point[0] for points in curves.values() for point in points}):
        if not ticks or tick > 1.15 * ticks[-1]:  # otherwise the tick labels would overlap
            ticks.append(tick)
    axes.set_xticks(ticks, [f"{tick:,.0f}" for tick in ticks], minor=False)
    axes.set_xticks([], minor=True)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:g}")
    axes.grid(alpha=0.3, which="both")
    axes.legend(frameon=False)
    _save(figure, path)


class Curve(NamedTuple):
    """A curve with a band, in the line style of its index."""

    name: str
    number: int
    x: Sequence[float] | Array
    y: Sequence[float] | Array
    low: Sequence[float] | Array | None = None
    high: Sequence[float] | Array | None = None


def draw_curves(curves: Sequence[Curve], *, title: str, x_label: str, may_be_log: bool = True) -> bytes:
    """Plot curves of finite values in a small figure, as PNG.

    Args:
        may_be_log: use a logarithmic axis if the values span more than a factor of 4.
    """
    file = BytesIO()
    _curves(curves, title=title, x_label=x_label, may_be_log=may_be_log).savefig(file, dpi="figure", format="png")
    return file.getvalue()


def draw_curve(x: Sequence[float], y: Sequence[float], *, title: str, x_label: str) -> Tensor:
    """Plot one curve: uint8 (3, H, W)."""
    return _pixels(_curves([Curve("", 0, x, y)], title=title, x_label=x_label, may_be_log=True))


def _curves(curves: Sequence[Curve], *, title: str, x_label: str, may_be_log: bool) -> Figure:
    outside = len(curves) > _INSIDE or (len(curves) > 1 and max(len(curve.name) for curve in curves) > _SHORT)
    figure = Figure(figsize=(5.6, 3.4 + 0.19 * len(curves) * outside), layout="constrained", dpi=150)
    axes = figure.subplots()
    for curve in curves:
        color, dashes = line_style(curve.number)
        marker = "o" if len(curve.x) < 2 else None  # a single point has no line
        name = curve.name.replace("$", r"\$")  # a folder name, not a formula
        axes.plot(curve.x, curve.y, label=name, color=color, linestyle=dashes, linewidth=1.8, marker=marker)
        if curve.low is not None and curve.high is not None:
            axes.fill_between(curve.x, curve.low, curve.high, color=color, alpha=0.18, linewidth=0)
    values = np.concatenate([np.asarray(curve.y) for curve in curves])
    if may_be_log and 0 < 4 * values.min() < values.max():
        few = values.max() < 1e3 * values.min()
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if few else (1,)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_locator(NullLocator())
    _frame(axes, xlabel=x_label, title=title)
    if outside:
        figure.legend(loc="outside lower left", frameon=False, fontsize=9)
    elif len(curves) > 1:
        axes.legend(frameon=False, fontsize=9)
    return figure


class Panel(NamedTuple):
    """A scatter plot of points (N, 2, 1, 1), colored by their labels (N,), if any."""

    title: str
    x: Tensor
    y: Tensor | None = None


def draw_points(rows: Sequence[Sequence[Panel]]) -> Tensor:
    """Plot rows of scatter plots: uint8 (3, H, W). Each row spans the figure's width and shares its limits and axes."""
    figure = Figure(figsize=(10, sum(10 / len(row) for row in rows)), dpi=100, layout="constrained")
    parts = figure.subfigures(len(rows), 1, squeeze=False, height_ratios=[1 / len(row) for row in rows])[:, 0]
    for part, row in zip(parts, rows, strict=True):
        # Covers all but a few noise points.
        reach = max(1.1, *(float(panel.x.abs().float().quantile(0.97)) for panel in row))
        for axes, panel in zip(part.subplots(1, len(row), squeeze=False)[0], row, strict=True):
            color = _COLORS[0] if panel.y is None else [_COLORS[k % len(_COLORS)] for k in panel.y.tolist()]
            axes.scatter(*panel.x.flatten(1).T.cpu(), s=16 / len(row), c=color, alpha=0.5, linewidths=0)
            axes.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal", xticks=[], yticks=[])
            axes.set_title(panel.title, fontsize=11)
    return _pixels(figure)


def _pixels(figure: Figure) -> Tensor:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return torch.from_numpy(np.asarray(canvas.buffer_rgba())[..., :3].copy()).permute(2, 0, 1)


def _frame(axes: Axes, **settings: Any) -> None:
    axes.set(**settings)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def _save(figure: Figure, path: Path) -> None:
    try:
        with replace_file(path, "wb") as file:
            figure.savefig(file, dpi=120, format="png")
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}): give a file in a folder that exists") from error
