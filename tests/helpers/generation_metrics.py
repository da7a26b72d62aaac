"""FID of a tiny run, as its log has it and as its checkpoint gives it."""

import csv

from hydra.utils import instantiate

from ddpm_lightning import runs
from ddpm_lightning.data.datasets import digits
from ddpm_lightning.images import SeededNoise, to_uint8
from ddpm_lightning.metrics import features
from ddpm_lightning.samplers import DDIM

FID = (
    "callbacks=fid",
    "features.num_steps=5",
    "callbacks.generation_metrics.num_samples=30",
    "callbacks.generation_metrics.every_n_steps=4",
    "callbacks.generation_metrics.batch_size=8",
    "callbacks.sample_grid=null",
    "callbacks.trajectory=null",
)


def rows(folder, key):
    with (folder / "metrics.csv").open() as file:
        return {int(row["step"]): float(row[key]) for row in csv.DictReader(file) if row.get(key)}


def real_and_fake(folder, count):
    """Features of the training images, and of as many samples of the run's averaged weights."""
    noise = SeededNoise(0, range(count))
    images = to_uint8(DDIM(4)(runs.load_denoiser(folder / "run"), noise.draw((1, 8, 8)), randn=noise))
    data = instantiate(runs.load_checkpoint(folder / "run")["config"]["data"])
    data.setup()
    model = features.classifier(digits, folder / "cache", num_steps=5)
    return features.extract(model, data.split("train").images), features.extract(model, images)
