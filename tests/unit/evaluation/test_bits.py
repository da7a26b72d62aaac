"""Whose likelihoods are computed, and where they are kept."""

import math

import pytest
import torch
from omegaconf import OmegaConf

from ddpm_lightning import schedules
from ddpm_lightning.data.datamodule import ImageDataModule
from ddpm_lightning.data.loaders import ImageSet
from ddpm_lightning.denoiser import Denoiser
from ddpm_lightning.evaluation.bits import Likelihood
from ddpm_lightning.evaluation.real_images import held_out_of
from ddpm_lightning.evaluation.real_images import test_split_of as split_of_tests
from ddpm_lightning.likelihood import BitsPerDim
from ddpm_lightning.models import UNet


def test_the_first_held_out_images_are_of_all_kinds():
    labels = torch.arange(10).repeat_interleave(100)
    data = ImageDataModule(
        lambda: ImageSet(torch.zeros(1000, 1, 8, 8).byte(), labels),
        channels=1,
        image_size=8,
        batch_size=9,
        val_fraction=0.5,
    )
    data.setup()
    held_out = held_out_of(data)
    assert len(held_out.labels) == 500
    assert torch.bincount(held_out.labels[:100], minlength=10).min() >= 3
    assert held_out.labels.equal(held_out_of(data).labels)


def test_likelihoods_of_another_schedule_are_not_taken(tmp_path):
    net = UNet(1, 1, base_channels=8, channel_multipliers=(1,), num_res_blocks=1, attention_levels=(), norm_groups=4)
    held_out = ImageSet(torch.zeros(2, 1, 8, 8).byte(), torch.zeros(2).long())
    denoisers = [Denoiser(net, make(num_steps=10)) for make in (schedules.linear, schedules.cosine)]
    assert len({Likelihood(tmp_path, denoiser, held_out).chunks.folder for denoiser in denoisers}) == 2


def test_all_methods_measure_one_model(tmp_path):
    """On Gaussian data of 8 bits the bounds and the ODE lie near the cross-entropy, the ODE lowest."""
    from tests.helpers.samplers import MEAN, STD, gaussian

    torch.manual_seed(0)
    images = ((MEAN + STD * torch.randn(256, 1, 4, 4) + 1) * 127.5).round().clamp(0, 255).byte()
    held_out = ImageSet(images, torch.zeros(256).long())
    denoiser = gaussian(schedules.cosine(1000), "v")
    total = {}
    for method in ("continuous", "ode"):
        arrays = Likelihood(tmp_path, denoiser, held_out, method=method).arrays()
        total[method] = float((arrays["total"] if method == "ode" else BitsPerDim(**arrays).total).mean())
    z = (images.double() / 127.5 - 1 - MEAN) / STD
    nats = float((z**2).mean()) / 2 + math.log(STD) + math.log(2 * math.pi) / 2
    exact = nats / math.log(2) + math.log2(127.5)
    assert total["ode"] == pytest.approx(exact, abs=0.01)
    assert exact < total["continuous"] < exact + 0.7  # the decoder sees x_1 only
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    ("dataset", "expected"),
    [
        ({"source": {"train": True}}, {"source": {"train": False}}),
        ({"source": {"split": "train"}}, {"source": {"split": "test"}}),
        ({"split": "train"}, {"split": "test"}),
    ],
)
def test_the_datasets_own_test_split(dataset, expected):
    node = OmegaConf.create({"dataset": dataset})
    assert split_of_tests(node, "split") == {"dataset": expected}
    assert node == {"dataset": dataset}
    with pytest.raises(ValueError, match="no test split"):
        split_of_tests(OmegaConf.create({"dataset": {"_target_": "digits"}}), "split")
