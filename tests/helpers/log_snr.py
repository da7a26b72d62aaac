"""The error at each log SNR, as a run logged it and as its checkpoint gives it."""

import csv

import torch
from hydra.utils import instantiate

from ddpm_lightning import runs
from ddpm_lightning.callbacks.pictures.log_snr import noise_errors, times_at
from ddpm_lightning.images import from_uint8


def errors_of_the_last(folder, count):
    """By level, what the averaged weights of the newest checkpoint give."""
    denoiser = runs.load_denoiser(folder)
    data = instantiate(runs.load_checkpoint(folder)["config"]["data"])
    data.setup()
    first = next(iter(data.batches("validation", count)))
    times = times_at(denoiser.schedule, range(-10, 11))
    with torch.no_grad():
        errors = noise_errors(denoiser, from_uint8(first.x0), None, first.ids.tolist(), times=times, seed=0).mean(0)
    return {f"mse_at_log_snr/{level:+03d}": error for level, error in zip(times, errors.tolist(), strict=True)}


def logged(folder):
    with (folder / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    (row,) = [row for row in rows if row["mse_at_log_snr/+00"]]
    return row["step"], {key: float(value) for key, value in row.items() if key.startswith("mse_at") and value}
