"""The report's pictures, as PNG files in memory: curves, schedules, and samples side by side."""

import json
from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ddpm_lightning.images import cells, grid, open_image
from ddpm_lightning.plots import Curve, draw_curves
from ddpm_lightning.report.reading import Run, Setting, part
from ddpm_lightning.report.rebuilding import schedule_of
from ddpm_lightning.run_folder import by_step

__all__ = ["COLUMNS", "curves", "errors_by_log_snr", "last_samples", "quartiles", "schedule_curves"]

COLUMNS = ("train/loss", "val/loss", "val/bits_per_dim", "val/fid")
_LEVELS = "mse_at_log_snr/"  # and behind it a level: the columns of the error there

Picture = tuple[str, bytes]  # what it shows, and the PNG file


def curves(settings: Sequence[Setting], columns: Sequence[str] = COLUMNS) -> Iterator[Picture]:
    """Each column of metrics.csv against step and wall time: the mean over a setting's runs, and from least to most."""
    for column in columns:
        for clock in ("step", "seconds"):
            found = [c for i, setting in enumerate(settings) if (c := _curve(setting, i, column, clock)) is not None]
            if found:
                title = f"{column} by {'step' if clock == 'step' else 'wall time'}"
                yield title, draw_curves(found, title=column, x_label="step" if clock == "step" else "wall time in s")


def quartiles(settings: Sequence[Setting]) -> Iterator[Picture]:
    """The training loss of each quarter of the times t, against step."""
    for i in range(4):
        found = [c for k, s in enumerate(settings) if (c := _curve(s, k, f"train/loss_q{i + 1}", "step")) is not None]
        if found:
            title = f"train/loss, {i / 4:g} < t/T ≤ {(i + 1) / 4:g}"
            yield title, draw_curves(found, title=title, x_label="step")


def errors_by_log_snr(settings: Sequence[Setting]) -> Iterator[Picture]:
    """The last squared errors of each run by the level of noise: the mean over a setting's runs, and from least to most."""
    found = [curve for i, setting in enumerate(settings) if (curve := _errors(setting, i)) is not None]
    if found:
        title = "squared error of the predicted noise"
        yield title, draw_curves(found, title=title, x_label="log SNR: noise on the left, the image on the right")


def schedule_curves(settings: Sequence[Setting]) -> Iterator[Picture]:
    """ᾱ_t and log SNR of the settings' schedules, where they differ."""
    first = {
        json.dumps(part(s.runs[0].config, "schedule"), sort_keys=True): i for i, s in reversed([*enumerate(settings)])
    }
    if len(first) < 2:
        return
    bars, snrs = [], []
    for i in sorted(first.values()):
        named = {k: v for k, v in settings[i].values.items() if k.partition(".")[0] == "schedule"}
        name = Setting(named or settings[i].values, ()).name
        schedule = schedule_of(settings[i].runs[0].config)
        if schedule is None:
            continue
        share = np.arange(schedule.num_steps + 1) / schedule.num_steps
        shown = schedule.log_snr.isfinite().numpy()  # ∞ at t = 0, and −∞ at T where nothing of the image is left
        bars.append(Curve(name, i, share, schedule.alpha_bar.numpy()))
        snrs.append(Curve(name, i, share[shown], schedule.log_snr.numpy()[shown]))
    if bars:
        yield (
            "ᾱ: the signal's share",
            draw_curves(bars, title="ᾱ: the signal's share of the variance", x_label="t/T", may_be_log=False),
        )
        yield "log SNR", draw_curves(snrs, title="log SNR = log ᾱ/(1 − ᾱ)", x_label="t/T", may_be_log=False)


def last_samples(run: Run, *, count: int = 12) -> bytes | None:
    """The first images of a run's last grid in a row, or its last scatter plot; None where it has drawn none."""
    found = by_step(run.folder / "samples", "grid", ".png")
    if not found:
        return _whole_picture(by_step(run.folder / "samples", "scatter", ".png"))
    try:
        with open_image(found[-1]) as image:
            sheet = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
        images = cells(sheet, part(run.config, "data.image_size"))
        classes, drawn = (part(run.config, key) for key in ("data.num_classes", "callbacks.sample_grid.num_samples"))
        drawn = drawn or len(images)
        if classes and classes <= drawn:  # a row for each label: back into turns
            images = images.unflatten(0, (classes, -1)).transpose(0, 1).flatten(0, 1)
    except (OSError, ValueError, TypeError, RuntimeError):
        return None
    shown = images[: min(count, drawn)]
    row = grid(shown, columns=len(shown), cell=64, gap=4, grey=208)  # seen beside black images and beside white ones
    return _png(Image.fromarray(row.permute(1, 2, 0).numpy()))


def _whole_picture(files: Sequence[Path]) -> bytes | None:
    """The last of these, as a file of ours."""
    try:
        with open_image(files[-1]) as image:
            return _png(image.convert("RGB"))
    except (OSError, ValueError, LookupError):
        return None


def _png(image: Image.Image) -> bytes:
    file = BytesIO()
    image.save(file, format="png")
    return file.getvalue()


def _curve(setting: Setting, number: int, column: str, clock: str) -> Curve | None:
    """Over the steps at which all the runs have a value: finished ones, or whatever there is where none has finished."""
    found = [series for run in setting.finished or setting.runs if (series := run.metrics.get(column))]
    steps = sorted(set.intersection(*({*series} for series in found))) if found else []
    if not steps:
        return None
    table = np.array([[series[step] for step in steps] for series in found])  # (runs, steps, seconds and value)
    values = table[..., 1]
    x = np.array(steps) if clock == "step" else table[..., 0].mean(0)
    if not x.any():
        return None  # an earlier version's run, which kept no time
    return Curve(setting.name, number, x, values.mean(0), values.min(0), values.max(0))


def _errors(setting: Setting, number: int) -> Curve | None:
    """Over the levels at which all the runs that have measured any have a value."""
    by_level = [last for run in setting.finished or setting.runs if (last := _last_errors(run))]
    levels = sorted(set.intersection(*({*last} for last in by_level))) if by_level else []
    if not levels:
        return None
    values = np.array([[last[level] for level in levels] for last in by_level])
    return Curve(setting.name, number, levels, values.mean(0), values.min(0), values.max(0))


def _last_errors(run: Run) -> dict[float, float]:
    """By level, at the last step at which they were measured."""
    series = {column: found for column, found in run.metrics.items() if column.startswith(_LEVELS)}
    last = max((step for found in series.values() for step in found), default=None)
    return {float(column.removeprefix(_LEVELS)): found[last][1] for column, found in series.items() if last in found}
