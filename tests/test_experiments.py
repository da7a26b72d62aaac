"""The presets of the lecture's notebook and of the papers, setting by setting, and two steps of each."""

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from PIL import Image

from ddpm_lightning import runs
from ddpm_lightning.callbacks import EMA
from ddpm_lightning.errors import UserError
from ddpm_lightning.models import DiT, UNet
from ddpm_lightning.runs.build import build_callbacks, build_module
from ddpm_lightning.runs.trials import times_of
from tests.conftest import ROOT, TINY, config_of, train_config

LONG = {"lecture", "cifar10_ddpm", "cifar10_improved", "celeba64", "imagenet64_dit"}

LINEAR = {
    "schedule._target_": "ddpm_lightning.schedules.linear",
    "schedule.num_steps": 1000,
    "schedule.beta_start": 1e-4,
    "schedule.beta_end": 0.02,
    "schedule.rescale": False,
}
ADAM_AFTER_A_WARM_UP = {
    "optimizer._target_": "torch.optim.Adam",
    "optimizer.lr": 2e-4,
    "optimizer.betas": [0.9, 0.999],
    "lr_scheduler._target_": "torch.optim.lr_scheduler.LinearLR",
    "lr_scheduler.total_iters": 5000,
    "lr_scheduler.end_factor": 1.0,
}
ADAMW_AT_ONE_RATE = {
    "optimizer._target_": "torch.optim.AdamW",
    "optimizer.lr": 1e-4,
    "optimizer.weight_decay": 0.0,
    "optimizer.betas": [0.9, 0.999],
    "lr_scheduler._target_": "torch.optim.lr_scheduler.ConstantLR",
    "lr_scheduler.factor": 1.0,
}
SIMPLE = {"loss._target_": "ddpm_lightning.losses.Loss", "loss.weighting": None, "learned_variance": False}
HYBRID = {"loss._target_": "ddpm_lightning.losses.Hybrid", "loss.vlb_weight": 0.001, "learned_variance": True}
CIFAR10 = {
    "data.dataset.source._target_": "torchvision.datasets.CIFAR10",
    "data.channels": 3,
    "data.image_size": [32, 32],
    "data.num_classes": None,
    "data.batch_size": 128,
    "data.val_fraction": 0.01,
}

PUBLISHED = {
    # tsmatz, diffusion-tutorials, 02-ddpm.ipynb
    "lecture": {
        **LINEAR,
        **ADAM_AFTER_A_WARM_UP,
        **SIMPLE,
        **CIFAR10,
        "data.flip": True,
        "model.dropout": 0.1,
        "trainer.max_steps": 500 * 391,
        "trainer.gradient_clip_val": None,
        "callbacks.ema": None,
        "sampler.variance": "small",
    },
    # Ho et al. 2020, appendix B, and scripts/run_cifar.py
    "cifar10_ddpm": {
        **LINEAR,
        **ADAM_AFTER_A_WARM_UP,
        **SIMPLE,
        **CIFAR10,
        "data.flip": True,
        "model.dropout": 0.1,
        "trainer.max_steps": 800_000,
        "trainer.gradient_clip_val": 1.0,
        "callbacks.ema.decay": 0.9999,
        "sampler._target_": "ddpm_lightning.samplers.Ancestral",
        "sampler.variance": "large",
        "sampler.num_steps": None,
    },
    # Nichol & Dhariwal 2021; improved-diffusion's README, script_util.py, image_train.py and image_datasets.py
    "cifar10_improved": {
        "schedule._target_": "ddpm_lightning.schedules.cosine",
        "schedule.num_steps": 4000,
        "schedule.s": 0.008,
        **ADAMW_AT_ONE_RATE,
        **HYBRID,
        **CIFAR10,
        "data.flip": False,
        "model.base_channels": 128,
        "model.channel_multipliers": [1, 2, 2, 2],
        "model.num_res_blocks": 3,
        "model.attention_levels": [1, 2],
        "model.num_heads": 4,
        "model.dropout": 0.3,
        "model.scale_shift_norm": True,
        "model.resblock_updown": False,
        "trainer.max_steps": 500_000,
        "trainer.gradient_clip_val": None,
        "callbacks.ema.decay": 0.9999,
        "sampler.variance": "learned",
    },
    # Song et al. 2021, appendix D.1, and configs/celeba.yml
    "celeba64": {
        **LINEAR,
        **ADAM_AFTER_A_WARM_UP,
        **SIMPLE,
        "data.dataset.source._target_": "torchvision.datasets.CelebA",
        "data.image_size": [64, 64],
        "data.batch_size": 128,
        "data.flip": True,
        "model.base_channels": 128,
        "model.channel_multipliers": [1, 2, 2, 2, 4],
        "model.num_res_blocks": 2,
        "model.attention_levels": [2],
        "model.dropout": 0.1,
        "trainer.max_steps": 500_000,
        "trainer.gradient_clip_val": 1.0,
        "callbacks.ema.decay": 0.9999,
    },
    # Peebles & Xie 2023; DiT's train.py and models.py
    "imagenet64_dit": {
        **LINEAR,
        **ADAMW_AT_ONE_RATE,
        **HYBRID,
        "data.image_size": [64, 64],
        "data.num_classes": 1000,
        "data.batch_size": 256,
        "data.flip": True,
        "label_dropout": 0.1,
        "model.patch_size": 4,
        "model.hidden_size": 768,
        "model.depth": 12,
        "model.num_heads": 12,
        "trainer.gradient_clip_val": None,
        "callbacks.ema.decay": 0.9999,
        "sampler.variance": "learned",
    },
}
PARAMETERS = {
    "lecture": 35_580_675,
    "cifar10_ddpm": 35_746_307,
    "cifar10_improved": 52_546_438,
    "celeba64": 78_700_803,
    "imagenet64_dit": 130_389_600,
}


def preset(name, *overrides):
    return config_of(f"experiment={name}", "run_dir=unused", "logger=none", *overrides)


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


def test_the_average_of_a_long_run_ends_at_the_published_decay():
    (ema,) = [c for c in build_callbacks(preset("cifar10_ddpm"), {}) if isinstance(c, EMA)]
    assert ema.current_decay == pytest.approx(0.1)
    ema._steps = 89_990  # (1 + n) / (10 + n) meets 0.9999 here, as the preset says
    assert ema.current_decay == pytest.approx(0.9999, abs=1e-9)
    ema._steps = 800_000
    assert ema.current_decay == 0.9999


def test_eight_processes_make_the_published_batch():
    config = preset("cifar10_ddpm", "trainer=ddp", "trainer.devices=8", "data.batch_size=16")
    assert config.trainer.devices * config.data.batch_size * config.trainer.accumulate_grad_batches == 128
    assert (config.trainer.strategy, config.trainer.max_steps) == ("ddp", 800_000)


def test_the_improved_sampler_spreads_its_steps_over_four_thousand():
    config = preset("cifar10_improved")
    times = times_of(instantiate(config.sampler), instantiate(config.schedule))
    assert (times[0], times[-1], len(times)) == (4000, 0, 251)


def test_imagenet_asks_for_its_folder_in_one_sentence():
    with pytest.raises(UserError, match=r"^data\.root has no default: give it on the command line, as in data\.root="):
        runs.train(preset("imagenet64_dit"))


def pictures(folder):
    """Eight pictures in two folders, in the set's place: its files are checked by their hashes, and cannot be made here."""
    for i in range(8):
        path = folder / str(i % 2) / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(i).integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(path)
    return ["data=image_folder", f"data.root={folder}", "data.image_size=[16,16]", "data.val_fraction=0.25"]


def tiny(name):
    small = [o for o in TINY if not o.startswith("data.batch_size")]
    if name == "lecture":
        small = [o for o in small if not o.startswith("callbacks.raw_grid")]
    if name == "imagenet64_dit":
        small = [o for o in small if not o.startswith("model.")]
        small += ["model.hidden_size=32", "model.depth=1", "model.num_heads=2"]
    return [*small, "data.batch_size=4", "trainer.max_steps=2"]


@pytest.mark.parametrize("name", sorted(LONG))
def test_a_preset_is_trained_for_two_steps(name, tmp_path):
    folder = tmp_path / "run"
    config = train_config(folder, f"experiment={name}", *pictures(tmp_path / "set"), tiny=tiny(name))
    assert config.trainer.gradient_clip_val == PUBLISHED[name]["trainer.gradient_clip_val"]
    build_module(config)
    runs.train(config)
    assert (folder / "summary.json").exists()
    held = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert ("ema_state_dict" in held) == (name != "lecture")


def test_the_lectures_closing_words_ask_for_its_raw_weights(tmp_path, capsys):
    runs.train(train_config(tmp_path / "run", "experiment=lecture", *pictures(tmp_path / "set"), tiny=tiny("lecture")))
    assert capsys.readouterr().out.rstrip().endswith("last.ckpt weights=raw")


def test_every_experiment_is_explained():
    page = (ROOT / "docs" / "experiments.md").read_text()
    assert all(f"`{name}`" in page for name in LONG)
    readme = (ROOT / "README.md").read_text()
    assert all(f"`{path.stem}`" in readme for path in (ROOT / "conf" / "experiment").glob("*.yaml"))
