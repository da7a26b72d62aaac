"""Every YAML is composed and built, and every experiment is trained for two steps."""

import pytest
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from lightning.pytorch import Callback, Trainer
from omegaconf import OmegaConf
from torch import nn

from ddpm_lightning import schedules
from ddpm_lightning.callbacks import NewestCheckpoint, Periodic
from ddpm_lightning.data.datasets import digits
from ddpm_lightning.denoiser import Denoiser
from ddpm_lightning.errors import UserError
from ddpm_lightning.runs.build import build_module
from ddpm_lightning.runs.build_callbacks import build_callbacks
from ddpm_lightning.samplers import DDIM, Sampler
from ddpm_lightning.schedules import NoiseSchedule
from tests.helpers.configs import choices, config_of, train_config

GIVEN = {  # what has no default is given here
    "schedule": {"betas": ["schedule.betas=[0.1,0.2,0.9]"], "alpha_bar": ["schedule.alpha_bar=[0.8,0.4,0.001]"]},
}


def of(group, choice, *overrides):
    return config_of(f"{group}={choice}", *GIVEN.get(group, {}).get(choice, []), "run_dir=unused", *overrides)


@pytest.mark.parametrize("choice", choices("schedule"))
def test_schedules(choice):
    schedule = instantiate(of("schedule", choice).schedule)
    assert isinstance(schedule, NoiseSchedule)
    assert 0 <= schedule.alpha_bar[-1] < 0.5


@pytest.mark.parametrize("choice", choices("model"))
def test_models(choice):
    config = of("model", choice)
    with torch.device("meta"):
        model = instantiate(config.model)
    assert isinstance(model, nn.Module)
    assert (model.in_channels, model.out_channels) == (1, 1)


@pytest.mark.parametrize("choice", choices("sampler"))
def test_samplers(choice):
    sampler = instantiate(of("sampler", choice).sampler)
    assert isinstance(sampler, Sampler)
    if choice == "learned":
        with pytest.raises(ValueError, match="after `python -m ddpm_lightning times CHECKPOINT`"):
            sampler.times(1000)
    else:
        assert sampler.times(1000, log_snr=schedules.linear().log_snr)[-1] == 0


@pytest.mark.parametrize("choice", choices("optimizer"))
@pytest.mark.parametrize("lr_scheduler", choices("lr_scheduler"))
def test_optimizers_and_their_rates(choice, lr_scheduler):
    config = of("optimizer", choice, f"lr_scheduler={lr_scheduler}")
    optimizer = instantiate(config.optimizer, _convert_="all")([nn.Parameter(torch.zeros(1))])
    scheduler = instantiate(config.lr_scheduler)(optimizer)
    rates = []
    for _ in range(5001):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    peak = config.optimizer.lr
    assert max(rates) == pytest.approx(peak)
    if "total_iters" in config.lr_scheduler and config.lr_scheduler.total_iters:
        n = config.lr_scheduler.total_iters
        assert rates[n // 2] == pytest.approx(peak / 2, rel=1e-3)
        assert rates[n] == pytest.approx(peak)


@pytest.mark.parametrize("choice", choices("callbacks"))
def test_callbacks(choice):
    config = of("callbacks", choice)
    built = build_callbacks(config, DDIM(2))
    with_figures = any(isinstance(callback, Periodic) for callback in built)
    saves = any(isinstance(callback, NewestCheckpoint) for callback in built)
    assert len(built) == 2 + len(config.callbacks) + (
        with_figures and saves
    )  # Randomness, StopSignals, SaveBeforeFigures
    assert all(isinstance(callback, Callback) for callback in built)


@pytest.mark.parametrize("choice", choices("logger"))
def test_loggers(choice, tmp_path):
    for node in config_of(f"logger={choice}", f"run_dir={tmp_path}").logger.values():
        instantiate(node, offline=True) if "offline" in node else instantiate(node)


@pytest.mark.parametrize(
    ("choice", "accelerator", "devices", "strategy"),
    [
        ("auto", "auto", 1, "auto"),
        ("cpu", "cpu", 1, "auto"),
        ("gpu", "gpu", 1, "auto"),
        ("mps", "mps", 1, "auto"),
        ("ddp", "gpu", "auto", "ddp"),
        ("ddp_cpu", "cpu", 2, "ddp"),
        ("slurm", "gpu", "auto", "ddp"),
        ("fsdp", "gpu", "auto", {"_target_": "ddpm_lightning.sharding.FSDP2"}),
    ],
)
def test_trainers(choice, accelerator, devices, strategy):
    assert choice in choices("trainer")
    node = of("trainer", choice).trainer
    assert (node.accelerator, node.devices, node.strategy) == (accelerator, devices, strategy)
    assert node.use_distributed_sampler is False
    if accelerator in ("cpu", "auto"):
        trainer = instantiate(node, logger=False)
        assert isinstance(trainer, Trainer)
        assert trainer.world_size == (2 if choice == "ddp_cpu" else 1)


def test_a_trainer_in_slurm_takes_what_slurm_gives(monkeypatch):
    from lightning.pytorch.plugins.environments import SLURMEnvironment

    monkeypatch.setenv("SLURM_NNODES", "3")
    monkeypatch.setenv("SLURM_NTASKS_PER_NODE", "4")
    node = of("trainer", "slurm").trainer
    assert (node.num_nodes, node.devices) == (3, 4)
    (environment,) = instantiate(node.plugins)
    assert isinstance(environment, SLURMEnvironment)
    assert environment.auto_requeue is False
    monkeypatch.delenv("SLURM_NNODES")
    monkeypatch.delenv("SLURM_NTASKS_PER_NODE")
    assert (of("trainer", "slurm").trainer.num_nodes, of("trainer", "slurm").trainer.devices) == (1, "auto")


@pytest.mark.parametrize("choice", choices("data"))
def test_data_states_channels_size_and_classes(choice):
    data = of("data", choice).data
    assert {"channels", "image_size", "num_classes", "batch_size"} <= data.keys()


@pytest.mark.parametrize("choice", choices("loss"))
def test_losses(choice, tmp_path):
    module = build_module(train_config(tmp_path, f"loss={choice}", *needed_by_loss(choice)))
    x0 = torch.randn(4, 1, 8, 8).clamp(-1, 1)
    t = torch.tensor([1, 2, 500, 1000]).reshape(-1, 1, 1, 1)
    noise = torch.randn_like(x0)
    losses = module.loss(module.denoiser, x0, module.denoiser.schedule.q_sample(x0, t, noise), t, noise)
    assert losses.shape == (4,)
    assert losses.isfinite().all()


def needed_by_loss(choice):
    return {"hybrid": ["learned_variance=true"], "vdm": ["schedule=learned"]}.get(choice, [])


@pytest.mark.parametrize("choice", choices("features"))
def test_features(choice, tmp_path):
    custom = ["features.net._target_=torch.nn.Flatten", "features.name=pixels"] if choice == "custom" else []
    node = of("features", choice, *custom).features
    make = instantiate(node, _convert_="all")
    if choice == "inception":  # its weights are downloaded: a file that is not there is named
        with pytest.raises(UserError, match="nowhere.pth"):
            make(digits, tmp_path, weights="nowhere.pth")
    elif choice == "classifier":
        assert make(digits, tmp_path, num_steps=1).num_features == 64
    else:
        images = torch.full((1, 3, 1, 1), 255, dtype=torch.uint8)
        expected = (1 - torch.tensor(node.mean)) / torch.tensor(node.std)
        assert torch.allclose(make(digits, tmp_path)(images)[0], expected)


@pytest.mark.parametrize("name", ["train", "sample", "evaluate"])
def test_entry_points_compose(name):
    config = config_of("run_dir=unused" if name == "train" else "seed=0", name=name)
    OmegaConf.to_container(config, resolve=True)
    assert not HydraConfig.initialized()


def test_the_command_line_of_the_readme_composes():
    config = config_of("model=unet_small", "trainer.devices=4", "run_dir=unused")
    assert config.trainer.devices == 4
    assert isinstance(instantiate(config.denoiser), Denoiser)


def test_an_experiments_settings_of_callbacks_that_are_not_chosen_do_nothing():
    config = config_of("experiment=fashion_mnist", "callbacks=checkpoint", "run_dir=unused")
    assert "_target_" not in config.callbacks.sample_grid
    built = build_callbacks(config, instantiate(config.sampler))
    assert len(built) == 2 + 2  # with Randomness and StopSignals
