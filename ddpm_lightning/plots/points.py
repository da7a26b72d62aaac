"""Scatter plots of points in the plane."""

from collections.abc import Sequence
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from ddpm_lightning.plots.style import line_style, pixels, styled

__all__ = ["Panel", "draw_points"]

_TEXT = 0.5  # inches of title and labels in each row
_MOST = 7  # labels in a legend, one for each color


class Panel(NamedTuple):
    """A scatter plot of points (N, 2, 1, 1), colored by their labels (N,), if any."""

    title: str
    x: Tensor
    y: Tensor | None = None


@styled
def draw_points(rows: Sequence[Sequence[Panel]], *, names: Sequence[str] = ()) -> Tensor:
    """Plot rows of scatter plots: uint8 (3, H, W). Each row spans the figure's width and shares its limits and axes.

    Args:
        rows: the panels of each row.
        names: the names of the labels 0, 1, …
    """
    heights = [10 / len(row) + _TEXT for row in rows]
    figure = Figure(figsize=(10, sum(heights)), dpi=100)
    parts = figure.subfigures(len(rows), 1, squeeze=False, height_ratios=heights)[:, 0]
    for part, row in zip(parts, rows, strict=True):
        # Covers all but a few noise points.
        reach = max(1.1, *(float(panel.x.abs().float().quantile(0.97)) for panel in row))
        shared = part.subplots(1, len(row), squeeze=False, sharex=True, sharey=True)[0]
        for axes, panel in zip(shared, row, strict=True):
            _scatter(axes, panel, size=16 / len(row), names=names if panel is rows[0][0] else ())
            axes.set(title=panel.title, xlabel="$x_1$", aspect="equal")
        shared[0].set(xlim=(-reach, reach), ylim=(-reach, reach), ylabel="$x_2$")
        for axis in (shared[0].xaxis, shared[0].yaxis):
            axis.set_major_locator(MaxNLocator(nbins=4, steps=[1, 2, 5, 10]))
    return pixels(figure)


def _scatter(axes: Axes, panel: Panel, *, size: float, names: Sequence[str]) -> None:
    x1, x2 = panel.x.flatten(1).T.cpu()
    if panel.y is None:
        axes.scatter(x1, x2, s=size, color=line_style(0)[0], alpha=0.5, linewidths=0)
        return
    # Together, so that no label lies above the others.
    colors = [line_style(k)[0] for k in panel.y.tolist()]
    axes.scatter(x1, x2, s=size, c=colors, alpha=0.5, linewidths=0)
    for label, name in enumerate(names[:_MOST]):
        axes.scatter([], [], color=line_style(label)[0], label=name)
    if names:
        axes.legend(loc="upper right")
