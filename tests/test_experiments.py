"""The long experiments: their settings are the published ones, and they run on data in the same format."""

import io
import tarfile
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torchvision
from hydra.utils import instantiate
from PIL import Image

from ddpm_lightning import runs
from ddpm_lightning.errors import UserError
from ddpm_lightning.images import grid, rows_by_label
from tests.conftest import TINY, config_of, train_config

# Where each value is from is said in docs/experiments.md.
HO = {
    "prediction": "epsilon", "learned_variance": False, "schedule.num_steps": 1000, "schedule.beta_start": 1e-4,
    "schedule.beta_end": 0.02, "optimizer.lr": 2e-4, "optimizer._target_": "torch.optim.Adam", "data.batch_size": 128,
    "lr_scheduler.total_iters": 5000, "model.base_channels": 128, "model.num_res_blocks": 2, "model.dropout": 0.1,
    "data.flip": True,
}  # fmt: skip
LONG = {"callbacks.ema.decay": 0.9999, "trainer.gradient_clip_val": 1.0}
SETTINGS = {
    "lecture": HO | {"callbacks.ema": None, "trainer.gradient_clip_val": None, "trainer.max_steps": 500 * 391},
    "cifar10_ddpm": HO | LONG | {"trainer.max_steps": 800_000, "data.image_size": [32, 32]},
    "cifar10_improved": {
        "prediction": "epsilon", "learned_variance": True, "schedule._target_": "ddpm_lightning.schedules.cosine",
        "schedule.num_steps": 4000, "loss._target_": "ddpm_lightning.losses.Hybrid", "loss.vlb_weight": 0.001,
        "model.base_channels": 128, "model.channel_multipliers": [1, 2, 2, 2], "model.num_res_blocks": 3,
        "model.attention_levels": [1, 2], "model.num_heads": 4, "model.dropout": 0.3, "model.scale_shift_norm": True,
        "optimizer.lr": 1e-4, "optimizer._target_": "torch.optim.AdamW", "optimizer.weight_decay": 0.0,
        "lr_scheduler.factor": 1.0, "callbacks.ema.decay": 0.9999, "trainer.gradient_clip_val": None,
        "data.batch_size": 128, "data.flip": False, "trainer.max_steps": 500_000,
    },
    "celeba64": HO | LONG | {
        "model.channel_multipliers": [1, 2, 2, 2, 4], "model.attention_levels": [2], "data.image_size": [64, 64],
        "trainer.max_steps": 500_000,
    },
    "imagenet64_dit": LONG | {
        "model._target_": "ddpm_lightning.models.DiT", "model.patch_size": 4, "model.hidden_size": 768, "model.depth": 12,
        "model.num_heads": 12, "data.num_classes": 1000, "data.image_size": [64, 64], "data.batch_size": 256,
        "label_dropout": 0.1, "optimizer.lr": 1e-4, "optimizer.weight_decay": 0.0, "lr_scheduler.factor": 1.0,
        "trainer.max_steps": 400_000,
    },
}  # fmt: skip

PARAMETERS = {
    "lecture": 35_580_675,
    "cifar10_ddpm": 35_746_307,
    "cifar10_improved": 52_546_438,
    "celeba64": 78_700_803,
    "imagenet64_dit": 130_352_688,
}


def of(choice, *overrides):
    return config_of(f"experiment={choice}", "data.root=unused", "run_dir=unused", *overrides)


@pytest.mark.parametrize("choice", SETTINGS)
def test_settings_are_the_published_ones(choice):
    config = of(choice)
    for key, value in SETTINGS[choice].items():
        node = config
        for part in key.split("."):
            node = node[part]
        assert node == value, key


@pytest.mark.parametrize("choice", SETTINGS)
def test_networks_have_as_many_parameters_as_they_should(choice):
    with torch.device("meta"):
        model = instantiate(of(choice).model)
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[choice]


@pytest.mark.parametrize("choice", SETTINGS)
def test_pictures_and_checkpoints_come_at_steps_that_there_are(choice):
    config = of(choice)
    spacings = [c.every_n_steps for c in config.callbacks.values() if c and c.get("every_n_steps")]
    spacings += [config.trainer.val_check_interval, config.callbacks.checkpoint.every_n_train_steps]
    assert min(spacings) >= 2500  # minutes, and not seconds, on a GPU
    assert max(spacings) <= config.trainer.max_steps / 8


SMALL = ["model.base_channels=8", "model.norm_groups=4", "schedule.num_steps=20", "callbacks.log_snr=null"]
SMALL_DIT = [
    "model.hidden_size=24",
    "model.depth=1",
    "model.num_heads=2",
    "schedule.num_steps=20",
    "data.num_classes=10",
]


def pictures(size, count=24):
    random = np.random.default_rng(0)
    return [Image.fromarray(random.integers(0, 256, (*size, 3), dtype=np.uint8)) for _ in range(count)]


@pytest.fixture
def sets(tmp_path, monkeypatch):
    """Few images of noise, as torchvision's sets give them, and as shards."""

    faces = tmp_path / "celeba" / "img_align_celeba"
    faces.mkdir(parents=True)
    for i, image in enumerate(pictures((80, 70))):
        image.save(faces / f"{i}.png")
    found = {"base_folder": "celeba", "root": str(tmp_path), "filename": sorted(path.name for path in faces.iterdir())}
    monkeypatch.setattr(torchvision.datasets, "CelebA", lambda **kwargs: SimpleNamespace(**found))
    pixels, targets = np.stack([*map(np.asarray, pictures((32, 32)))]), [i % 10 for i in range(24)]
    monkeypatch.setattr(torchvision.datasets, "CIFAR10", lambda **kwargs: SimpleNamespace(data=pixels, targets=targets))
    (tmp_path / "shards").mkdir()
    for shard in range(3):
        with tarfile.open(tmp_path / "shards" / f"{shard}.tar", "w") as tar:
            for i, image in enumerate(pictures((64, 64), 40)):
                file = io.BytesIO()
                image.save(file, "png")
                for name, data in ((f"{i:03}.png", file.getvalue()), (f"{i:03}.cls", str(i % 10).encode())):
                    info = tarfile.TarInfo(name)
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    return tmp_path / "shards"


@pytest.mark.parametrize("choice", SETTINGS)
def test_they_are_trained_for_two_steps(choice, sets, tmp_path):
    small, tiny = SMALL, [o for o in TINY if not o.startswith(("model.", "lr_scheduler", "callbacks."))]
    if choice == "imagenet64_dit":
        small = [*SMALL_DIT, "data.dataset.workers=0", "callbacks.log_snr=null"]
    data = [f"data.root={sets}", "data.batch_size=4", "sampler.num_steps=2", "trainer.max_steps=2"]
    few = [f"callbacks.{name}.num_samples=2" for name in ("sample_grid", "trajectory")]
    alone = [f"data.val_fraction={0.2}"] if choice != "imagenet64_dit" else []
    overrides = [
        *tiny,
        f"experiment={choice}",
        *small,
        *data,
        *few,
        *alone,
        "logger=none",
        f"run_dir={tmp_path / 'run'}",
    ]
    runs.train(config_of(*overrides))
    assert (tmp_path / "run" / "summary.json").exists()
    weights = "raw" if choice == "lecture" else "ema"  # the notebook averages none
    runs.load_denoiser(tmp_path / "run" / "checkpoints" / "last.ckpt", weights=weights)


def test_a_set_without_a_place_is_asked_for(tmp_path):
    with pytest.raises(UserError, match=r"data\.root has no default: give it on the command line"):
        runs.train(train_config(tmp_path, "experiment=imagenet64_dit", tiny=()))


def test_a_picture_of_fewer_images_than_labels_is_a_square():
    images = torch.randint(0, 256, (9, 3, 8, 8), dtype=torch.uint8)
    assert torch.equal(rows_by_label(images, 1000), grid(images))
    assert not torch.equal(rows_by_label(images, 9), grid(images))
