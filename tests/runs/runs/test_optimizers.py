"""PyTorch's optimizers and rates, and Lightning's callbacks, without a class of one's own: trained, stopped, resumed."""

import inspect

import pytest
import torch
from omegaconf import OmegaConf, open_dict
from torch.optim import lr_scheduler

from ddpm_lightning import runs
from tests.helpers.configs import NO_FIGURES, train_config
from tests.helpers.resuming import interrupted

NOT_ONE_PASS = ("LBFGS", "SparseAdam", "Muon")  # which asks for a closure, for sparse gradients, for matrices alone
OPTIMIZERS = sorted(
    name
    for name in torch.optim.__all__
    if inspect.isclass(found := getattr(torch.optim, name))
    and issubclass(found, torch.optim.Optimizer)
    and found is not torch.optim.Optimizer
    and name not in NOT_ONE_PASS
)
RATES = {
    "CosineAnnealingLR": {"T_max": 6},
    "OneCycleLR": {"max_lr": 0.01, "total_steps": 6},
    "CosineAnnealingWarmRestarts": {"T_0": 2},
    "CyclicLR": {"base_lr": 0.001, "max_lr": 0.01, "cycle_momentum": False},
    "ExponentialLR": {"gamma": 0.9},
    "MultiStepLR": {"milestones": [2, 4]},
    "PolynomialLR": {"total_iters": 6},
    "StepLR": {"step_size": 2},
}


def config_of(folder, part, *overrides):
    config = train_config(folder, *NO_FIGURES, "trainer.val_check_interval=6", *overrides)
    with open_dict(config):
        for key, node in part.items():
            OmegaConf.update(config, key, node, merge=False, force_add=True)
    return config


def weights_of(folder):
    checkpoint = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 6
    return {**checkpoint["state_dict"], **{f"ema.{k}": v for k, v in checkpoint["ema_state_dict"].items()}}


def check_resumed(tmp_path, part):
    """Six steps at once, and four and two more after a kill, are the same to the bit."""
    runs.train(config_of(tmp_path / "whole", part, "trainer.max_steps=6"))
    parts = interrupted(tmp_path / "whole", tmp_path / "parts", 4)
    runs.train(train_config(parts, f"resume={parts}"))
    one, two = weights_of(tmp_path / "whole"), weights_of(parts)
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_of_pytorch_is_resumed(name, tmp_path):
    check_resumed(tmp_path, {"optimizer": {"_target_": f"torch.optim.{name}", "_partial_": True, "lr": 1e-3}})


@pytest.mark.parametrize("name", RATES)
def test_a_rate_of_pytorch_is_resumed(name, tmp_path):
    node = {"_target_": f"torch.optim.lr_scheduler.{name}", "_partial_": True, **RATES[name]}
    assert issubclass(getattr(lr_scheduler, name), lr_scheduler.LRScheduler)
    check_resumed(tmp_path, {"lr_scheduler": node})


@pytest.mark.parametrize("name", ["LearningRateMonitor", "DeviceStatsMonitor", "Timer"])
def test_a_callback_of_lightning_is_resumed(name, tmp_path):
    settings = {"cpu_stats": False} if name == "DeviceStatsMonitor" else {}
    node = {"_target_": f"lightning.pytorch.callbacks.{name}", **settings}
    check_resumed(tmp_path, {"callbacks.theirs": node})
