"""The style of all plots, light or dark, and how a figure becomes pixels or a file."""

from collections.abc import Callable
from functools import cache, wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import matplotlib
import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from ddpm_lightning import environment
from ddpm_lightning.errors import UserError
from ddpm_lightning.files import replace_file

__all__ = ["LOWER", "line_style", "pixels", "save", "styled"]

LOWER = "↓"  # behind the name of a metric: lower is better

_DASHES = ("-", "--", ":")

P = ParamSpec("P")
R = TypeVar("R")


def styled(draw: Callable[P, R]) -> Callable[P, R]:
    """Draw in the package's style, in the theme of `environment.theme`."""

    @wraps(draw)
    def in_style(*args: P.args, **kwargs: P.kwargs) -> R:
        with matplotlib.rc_context(_settings(environment.theme())):
            return draw(*args, **kwargs)

    return in_style


def line_style(index: int, theme: str | None = None) -> tuple[str, str]:
    """Color and dashes of a curve by index; neighbors differ in both, so that overlapping curves stay visible.

    The theme is "light" or "dark", by default that of `environment.theme`.
    """
    colors = _settings(theme or environment.theme())["axes.prop_cycle"].by_key()["color"]
    return colors[index % len(colors)], _DASHES[index % len(_DASHES)]


def pixels(figure: Figure) -> Tensor:
    """The figure as uint8 (3, H, W)."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return torch.from_numpy(np.asarray(canvas.buffer_rgba())[..., :3].copy()).permute(2, 0, 1)


def save(figure: Figure, path: Path) -> None:
    """Save a figure as PNG, atomically.

    Raises:
        UserError: if the file cannot be written.
    """
    try:
        with replace_file(path, "wb") as file:
            figure.savefig(file, format="png")
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}): give a file in a folder that exists") from error


@cache
def _settings(theme: str) -> Any:
    """Matplotlib's settings by name."""
    found: dict[Any, Any] = {}
    for name in ("figures", "dark") if theme == "dark" else ("figures",):
        path = Path(__file__).parent / f"{name}.mplstyle"
        found.update({**matplotlib.rc_params_from_file(path, use_default_template=False)})
    return found
