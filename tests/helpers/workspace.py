"""What is logged, and what a dashboard's panels show."""

import pytest
from lightning.pytorch.loggers import Logger
from omegaconf import OmegaConf

from ddpm_lightning import runs
from tests.helpers.configs import TINY_POINTS, WHOLE, train_config
from tests.helpers.reports import fabricate


class Recorder(Logger):
    """Takes note of all names that are logged."""

    name, version = "recorder", ""

    def __init__(self):
        super().__init__()
        self.keys = set()

    def log_hyperparams(self, params, *args, **kwargs):
        """Nothing."""

    def log_metrics(self, metrics, step=None):
        self.keys |= {*metrics}

    def log_image(self, key, images, step=None, **kwargs):
        self.keys.add(key)

    log_video = log_image


def names_logged(folder):
    """The names that a run on images and one on points log."""
    fid = [
        *("callbacks=fid", "features.num_steps=2", "callbacks.generation_metrics.num_samples=12"),
        f"callbacks.generation_metrics.cache_dir='{folder / 'cache'}'",
    ]
    recorder = Recorder()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ddpm_lightning.runs.build.build_loggers", lambda config, run_dir: [recorder])
        runs.train(train_config(folder / "images", *fid, tiny=WHOLE))
        runs.train(train_config(folder / "points", tiny=TINY_POINTS))
    return recorder.keys


def panels_of(made):
    return [panel for section in made.sections for panel in section.panels]


def keys_of(panel):
    return [
        *getattr(panel, "y", []),
        *getattr(panel, "media_keys", []),
        *filter(None, [getattr(panel, "table_name", "")]),
    ]


def fabricate_sweep(folder):
    """Runs of a sweep that were logged to W&B offline."""
    bits = {"linear": (2.5, 2.9), "cosine": (2.3, 2.6)}
    for i, (name, values) in enumerate(bits.items()):
        for seed, value in enumerate(values):
            errors = {100: {"-08": 0.1, "+08": 0.9}}
            best = {"val/bits_per_dim": value}
            job = (f"schedule={name}", f"seed={seed}")
            wandb = ("logger=wandb", "logger.wandb.offline=true")
            fabricate(folder, 2 * i + seed, *job, best=best, errors=errors, logger=wandb)
    OmegaConf.save(
        OmegaConf.create({"hydra": {"overrides": {"task": ["schedule=linear,cosine"]}}}), folder / "multirun.yaml"
    )
    return folder
