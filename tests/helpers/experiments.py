"""What was published of the experiments that train for days, and pictures to train them on for two steps."""

import numpy as np
from PIL import Image

from tests.helpers.configs import config_of

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
    # the lecture's Algorithms 25.1 and 25.2, as printed
    "lecture_digits": {
        **LINEAR,
        **SIMPLE,
        "loss.times._target_": "ddpm_lightning.losses.Uniform",
        "prediction": "epsilon",
        "optimizer._target_": "torch.optim.Adam",
        "lr_scheduler._target_": "torch.optim.lr_scheduler.LinearLR",
        "trainer.gradient_clip_val": None,
        "callbacks.ema": None,
        "sampler._target_": "ddpm_lightning.samplers.Ancestral",
        "sampler.num_steps": None,
        "sampler.variance": "small",
        "sampler.clip": None,
        "sampler.dynamic_threshold": None,
    },
    # Ho et al. 2020, appendix B, and scripts/run_cifar.py, nn.py and tpu_utils.py
    "cifar10_ddpm": {
        "callbacks.ema.warmup": False,
        "model.xavier_init": True,
        "model.zero_init": True,
        "loss.reduction": "mean",
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
    # Nichol & Dhariwal 2021; improved-diffusion's README, script_util.py, image_train.py, image_datasets.py and respace.py
    "cifar10_improved": {
        "callbacks.ema.warmup": False,
        "model.time_scale": 1000 / 4000,
        "sampler.spacing": "linspace",
        "sampler.clip": 1.0,
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
    # Song et al. 2021, appendix D.1; configs/celeba.yml, datasets/__init__.py, runners/diffusion.py, functions/losses.py,
    # functions/denoising.py and models/diffusion.py of its code
    "celeba64": {
        **LINEAR,
        "optimizer._target_": "torch.optim.Adam",
        "optimizer.lr": 2e-4,
        "optimizer.betas": [0.9, 0.999],
        "lr_scheduler.factor": 1.0,
        "loss.reduction": "sum",
        "loss.times._target_": "ddpm_lightning.losses.Antithetic",
        "model.xavier_init": False,
        "model.zero_init": False,
        "model.frequency_shift": 1,
        "model.norm_eps": 1e-6,
        "callbacks.ema.warmup": False,
        "sampler.eta": 0.0,
        "sampler.spacing": "leading",
        "sampler.clip": None,
        "data.dataset.crop": [89 - 64, 121 - 64, 128, 128],
        "data.dataset.resize": "bilinear",
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
    # Peebles & Xie 2023; DiT's train.py, models.py and diffusion/respace.py
    "imagenet64_dit": {
        "callbacks.ema.warmup": False,
        "data.dataset.resize": "box_bicubic",
        "sampler.spacing": "linspace",
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


def pictures(folder):
    """Eight pictures in two folders, in the set's place: its files are checked by their hashes, and cannot be made here."""
    for i in range(8):
        path = folder / str(i % 2) / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(i).integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(path)
    return ["data=image_folder", f"data.root={folder}", "data.image_size=[16,16]", "data.val_fraction=0.25"]


def preset(name, *overrides):
    return config_of(f"experiment={name}", "run_dir=unused", "logger=none", *overrides)
