"""The report's figures: charts of curves and schedules, and samples as PNG data."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from io import BytesIO
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ddpm_lightning.images import cells, grid, open_image
from ddpm_lightning.plots import Curve
from ddpm_lightning.report.page import Plot
from ddpm_lightning.report.reading import Run, Setting, part
from ddpm_lightning.report.rebuilding import schedule_of
from ddpm_lightning.run_folder import by_step
from ddpm_lightning.sheets import Layout

__all__ = ["curves", "errors_by_log_snr", "last_samples", "quartiles", "schedule_curves"]

_COLUMNS = ("train/loss", "val/loss", "val/bits_per_dim", "val/fid")
_LEVELS = "mse_at_log_snr/"  # prefix of the columns of the error at a level


def curves(settings: Sequence[Setting]) -> Iterator[Plot]:
    """Columns of metrics.csv against step and wall time: the mean over a setting's runs, with a min-max band."""
    for column in _COLUMNS:
        yield from _plot(settings, partial(_by_step, column=column), f"{column} by step", column, "step")
        by_time = partial(_by_time, column=column)
        yield from _plot(settings, by_time, f"{column} by wall time", column, "wall time in s")


def quartiles(settings: Sequence[Setting]) -> Iterator[Plot]:
    """The training loss by quartile of t, against step."""
    for i in range(4):
        title = f"train/loss, {i / 4:g} < t/T ≤ {(i + 1) / 4:g}"
        yield from _plot(settings, partial(_by_step, column=f"train/loss_q{i + 1}"), title, title, "step")


def errors_by_log_snr(settings: Sequence[Setting]) -> Iterator[Plot]:
    """Each run's last noise-prediction error vs. log SNR: the mean over a setting's runs, with a min-max band."""
    title, x_label = "noise-prediction error", "log SNR (noise on the left, image on the right)"
    yield from _plot(settings, _last_errors, title, title, x_label)


def schedule_curves(settings: Sequence[Setting]) -> Iterator[Plot]:
    """ᾱ_t and log SNR of the settings' schedules, if they differ."""
    first: dict[str, int] = {}
    for i, setting in enumerate(settings):
        first.setdefault(json.dumps(part(setting.config, "schedule"), sort_keys=True), i)
    bars, snrs = [], []
    for i in first.values() if len(first) > 1 else ():
        values = settings[i].values
        name = Setting({k: v for k, v in values.items() if k.partition(".")[0] == "schedule"} or values, ()).name
        if (schedule := schedule_of(settings[i].config)) is not None:
            share = np.arange(schedule.num_steps + 1) / schedule.num_steps
            shown = schedule.log_snr.isfinite().numpy()  # ∞ at t = 0, and −∞ at T with zero terminal SNR
            bars.append(Curve(name, i, share, schedule.alpha_bar.numpy()))
            snrs.append(Curve(name, i, share[shown], schedule.log_snr.numpy()[shown]))
    if bars:
        for title, drawn in (("ᾱ: the signal's share of the variance", bars), ("log SNR = log ᾱ/(1 − ᾱ)", snrs)):
            yield Plot(title, title, "t/T", drawn, may_be_log=False)


def last_samples(run: Run, *, count: int = 12) -> bytes | None:
    """The first images of a run's last grid in a row, or its last scatter plot; None if neither can be read."""
    grids, scatters = (by_step(run.folder / "samples", name, ".png") for name in ("grid", "scatter"))
    try:
        with open_image((grids or scatters)[-1]) as opened:
            image, layout = opened.convert("RGB"), Layout.read(opened.info)
        file = BytesIO()
        (_first_images(image, layout, run, count) if grids else image).save(file, format="png")
        return file.getvalue()
    except (OSError, ValueError, LookupError, TypeError, RuntimeError):
        return None


def _first_images(sheet: Image.Image, layout: Layout | None, run: Run, count: int) -> Image.Image:
    pixels = torch.from_numpy(np.array(sheet)).permute(2, 0, 1)
    images = layout.images(pixels) if layout else _without_layout(pixels, run)
    row = grid(images[:count], columns=min(count, len(images)), cell=64, gap=4, grey=208)  # beside black and white
    return Image.fromarray(row.permute(1, 2, 0).numpy())


def _without_layout(sheet: Tensor, run: Run) -> Tensor:
    """The images of a grid of earlier versions, whose file does not say where they are."""
    images = cells(sheet, part(run.config, "data.image_size"))
    sampled = part(run.config, "callbacks.sample_grid.num_samples") or len(images)
    classes = part(run.config, "data.num_classes")
    if classes and classes <= sampled:  # one row per label: back to cyclic order
        images = images.unflatten(0, (classes, -1)).transpose(0, 1).flatten(0, 1)
    return images[:sampled]


Series = Mapping[Any, tuple[float, float]]  # (x, y) of a run, by a key shared by a setting's runs


def _by_time(run: Run, *, column: str) -> Series:
    found = run.metrics.get(column, {})
    return found if any(seconds for seconds, _ in found.values()) else {}  # runs of earlier versions have no times


def _by_step(run: Run, *, column: str) -> Series:
    return {step: (step, value) for step, (_, value) in run.metrics.get(column, {}).items()}


def _last_errors(run: Run) -> Series:
    """The level and its error at the last measured step, by level."""
    series = {float(key.removeprefix(_LEVELS)): found for key, found in run.metrics.items() if key.startswith(_LEVELS)}
    last = max((step for found in series.values() for step in found), default=None)
    return {level: (level, found[last][1]) for level, found in series.items() if last in found}


def _plot(
    settings: Sequence[Setting], series_of: Callable[[Run], Series], caption: str, title: str, x_label: str
) -> Iterator[Plot]:
    """One curve per setting, over the keys common to its runs: mean, minimum and maximum of y."""
    drawn = []
    for i, setting in enumerate(settings):
        series = [found for run in setting.finished or setting.runs if (found := series_of(run))]
        if shared := sorted(set.intersection(*map(set, series))) if series else []:
            x, y = np.array([[found[key] for key in shared] for found in series]).transpose(2, 0, 1)
            drawn.append(Curve(setting.name, i, x.mean(0).tolist(), y.mean(0), y.min(0), y.max(0)))
    if drawn:
        yield Plot(caption, title, x_label, drawn)
