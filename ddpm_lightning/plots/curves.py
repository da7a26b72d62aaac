"""Plots of metrics: against the training step, log SNR, t, and the network evaluations of samplers."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from io import BytesIO
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator
from numpy.typing import NDArray
from torch import Tensor

from ddpm_lightning.plots.style import LOWER, line_style, pixels, save, styled

__all__ = ["Curve", "draw_bits_by_step", "draw_comparison", "draw_curve", "draw_curves"]

_INSIDE = 4  # a legend fits inside a small plot up to this number of curves, and letters per name
_SHORT = 24

Array = NDArray[np.floating[Any]]


@styled
def draw_bits_by_step(path: Path, bits: Sequence[float]) -> None:
    """Plot the bound's term at each t = 1..T in bits per dimension, and the cumulative sum.

    Raises:
        UserError: if the file cannot be written.
    """
    figure = Figure(figsize=(10, 4))
    left, right = figure.subplots(1, 2)
    t = range(1, len(bits) + 1)
    left.plot(t, bits, color=line_style(0)[0])
    right.plot(t, list(accumulate(bits)), color=line_style(4)[0])
    for axes, title in ((left, "Term of the bound at t"), (right, "Sum of the terms 1..t")):
        axes.set(xlabel="timestep t", xlim=(0, len(bits)), title=title, ylabel=f"bits/dim {LOWER}")
    left.set_yscale("log")
    save(figure, path)


@styled
def draw_comparison(path: Path, curves: Mapping[str, Sequence[tuple[float, float, float]]], *, metric: str) -> None:
    """Plot a metric against network evaluations per image, one curve per sampler, on logarithmic axes.

    Args:
        path: the file.
        curves: (evaluations, value, deviation) by sampler.
        metric: the metric, of which lower values are better.

    Raises:
        UserError: if the file cannot be written.
    """
    figure = Figure(figsize=(8, 5))
    axes = figure.subplots()
    for index, (name, points) in enumerate(curves.items()):
        color, dashes = line_style(index)
        x, y, deviation = zip(*sorted(points), strict=True)
        axes.errorbar(x, y, deviation, label=name, color=color, linestyle=dashes, marker="o")
    label = f"{metric} {LOWER} (lower is better)"
    axes.set(xlabel="network evaluations per image", ylabel=label, xscale="log", yscale="log")
    ticks: list[float] = []
    for tick, _ in Counter(point[0] for points in curves.values() for point in points).most_common():
        if all(abs(math.log(tick / other)) > math.log(1.15) for other in ticks):  # otherwise labels would overlap
            ticks.append(tick)
    axes.set_xticks(ticks, [f"{tick:,.0f}" for tick in ticks], minor=False)
    axes.set_xticks([], minor=True)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:g}")
    axes.grid(visible=True, which="both")
    axes.legend()
    save(figure, path)


class Curve(NamedTuple):
    """A curve with a band, in the line style of its index."""

    name: str
    number: int
    x: Sequence[float] | Array
    y: Sequence[float] | Array
    low: Sequence[float] | Array | None = None
    high: Sequence[float] | Array | None = None


@styled
def draw_curves(
    curves: Sequence[Curve], *, title: str, x_label: str, y_label: str = "", may_be_log: bool = True
) -> bytes:
    """Plot curves of finite values in a small figure, as PNG.

    Args:
        curves: the curves.
        title: above the plot.
        x_label: the quantity along x, with its unit.
        y_label: the quantity along y, with its unit, and `LOWER` where lower values are better.
        may_be_log: use a logarithmic axis if the values span more than a factor of 4.
    """
    file = BytesIO()
    _curves(curves, title=title, x_label=x_label, y_label=y_label, may_be_log=may_be_log).savefig(file, format="png")
    return file.getvalue()


@styled
def draw_curve(x: Sequence[float], y: Sequence[float], *, title: str, x_label: str, y_label: str) -> Tensor:
    """Plot one curve: uint8 (3, H, W). See `draw_curves`."""
    return pixels(_curves([Curve("", 0, x, y)], title=title, x_label=x_label, y_label=y_label, may_be_log=True))


def _curves(curves: Sequence[Curve], *, title: str, x_label: str, y_label: str, may_be_log: bool) -> Figure:
    outside = len(curves) > _INSIDE or (len(curves) > 1 and max(len(curve.name) for curve in curves) > _SHORT)
    figure = Figure(figsize=(5.6, 3.4 + 0.19 * len(curves) * outside), dpi=150)
    axes = figure.subplots()
    for curve in curves:
        color, dashes = line_style(curve.number)
        marker = "o" if len(curve.x) < 2 else None  # a single point has no line
        name = curve.name.replace("$", r"\$")  # a folder name, not a formula
        axes.plot(curve.x, curve.y, label=name, color=color, linestyle=dashes, marker=marker)
        if curve.low is not None and curve.high is not None:
            axes.fill_between(curve.x, curve.low, curve.high, color=color, alpha=0.18, linewidth=0)
    if may_be_log:
        _use_log(axes, np.concatenate([np.asarray(curve.y) for curve in curves]))
    axes.set(xlabel=x_label, ylabel=y_label, title=title)
    if outside:
        figure.legend(loc="outside lower left")
    elif len(curves) > 1:
        axes.legend()
    return figure


def _use_log(axes: Axes, values: Array) -> None:
    """A logarithmic axis of y, if positive values span more than a factor of 4."""
    if not 0 < 4 * values.min() < values.max():
        return
    few = values.max() < 1e3 * values.min()
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if few else (1,)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_locator(NullLocator())
