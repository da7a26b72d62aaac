"""The presets of the lecture's notebook and of the papers, setting by setting."""

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from ddpm_lightning.callbacks import EMA
from ddpm_lightning.models import DiT, UNet
from ddpm_lightning.runs.build_callbacks import build_callbacks, first
from ddpm_lightning.samplers import DDIM
from tests.helpers.configs import ROOT
from tests.helpers.experiments import LONG, PUBLISHED, preset

PARAMETERS = {
    "lecture": 35_580_675,
    "cifar10_ddpm": 35_746_307,
    "cifar10_improved": 52_546_438,
    "celeba64": 78_700_803,
    "imagenet64_dit": 130_389_600,
}


@pytest.mark.parametrize(("name", "key"), [(name, key) for name, keys in PUBLISHED.items() for key in keys])
def test_a_preset_has_the_published_setting(name, key):
    value = OmegaConf.select(preset(name), key)
    assert (OmegaConf.to_container(value) if OmegaConf.is_list(value) else value) == PUBLISHED[name][key]


@pytest.mark.parametrize("name", sorted(LONG))
def test_a_preset_has_the_published_network(name):
    config = preset(name)
    with torch.device("meta"):
        model = instantiate(config.model)
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]
    assert isinstance(model, DiT if name == "imagenet64_dit" else UNet)
    assert config.prediction == "epsilon"


@pytest.mark.parametrize("name", sorted(LONG))
def test_a_long_run_is_looked_at_and_saved_at_validations(name):
    """A checkpoint waits for the validation behind it, and pictures are drawn at validations: their spacings fit."""
    config = preset(name)
    step = config.trainer.val_check_interval
    looks = [
        config.callbacks[key].every_n_steps
        for key in ("sample_grid", "raw_grid", "trajectory")
        if config.callbacks[key]
    ]
    assert all(n % step == 0 for n in (*looks, config.callbacks.checkpoint.every_n_train_steps))
    assert 30 <= config.trainer.max_steps / step <= 200
    assert config.callbacks.checkpoint.save_top_k == 2  # of half a gigabyte and more


@pytest.mark.parametrize("name", sorted(LONG - {"lecture"}))
def test_the_average_of_a_long_run_has_the_published_decay_from_the_start(name):
    assert first(build_callbacks(preset(name), DDIM(2)), EMA).current_decay == 0.9999


def test_eight_processes_make_the_published_batch():
    config = preset("cifar10_ddpm", "trainer=ddp", "trainer.devices=8", "data.batch_size=16")
    assert config.trainer.devices * config.data.batch_size * config.trainer.accumulate_grad_batches == 128
    assert (config.trainer.strategy, config.trainer.max_steps) == ("ddp", 800_000)


def test_the_improved_sampler_spreads_its_steps_over_four_thousand():
    config = preset("cifar10_improved")
    schedule = instantiate(config.schedule)
    times = instantiate(config.sampler).times(schedule.num_steps, log_snr=schedule.log_snr)
    # space_timesteps(4000, "250") of improved-diffusion: multiples of 3999/249, rounded; its t begins at 0.
    assert times == [1 + round(3999 / 249 * i) for i in reversed(range(250))] + [0]


def test_ddims_steps_are_those_of_its_code():
    config = preset("celeba64")
    times = instantiate(config.sampler).times(1000, log_snr=instantiate(config.schedule).log_snr)
    assert times == [1 + t for t in reversed(range(0, 1000, 10))] + [0]  # "uniform"


def test_every_experiment_is_explained():
    page = (ROOT / "docs" / "experiments.md").read_text()
    assert all(f"`{name}`" in page for name in LONG)
