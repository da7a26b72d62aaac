"""Times that are searched for, stored beside a checkpoint, and taken again."""

import json
import math
import shutil

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from ddpm_lightning import CONF_DIR, schedules
from ddpm_lightning.denoiser import Denoiser
from ddpm_lightning.errors import UserError
from ddpm_lightning.models import UNet
from ddpm_lightning.runs import save_denoiser
from ddpm_lightning.runs.learned_times import _training_data, find_times, learned_settings
from ddpm_lightning.runs.process_group import ALONE
from ddpm_lightning.runs.sampling_setup import prepare_sampling
from ddpm_lightning.runs.times_search import Target, descend
from ddpm_lightning.samplers import DDIM
from tests.helpers.samplers import MEAN, STD, gaussian


def exact_of_a_gaussian(schedule, x):
    """The ODE's solution at t = 0: the affine map between the two normal distributions."""
    a, s = float(schedule.sqrt_alpha_bar[-1]), float(schedule.sqrt_one_minus_alpha_bar[-1])
    return MEAN + STD / math.hypot(a * STD, s) * (x - a * MEAN)


def test_two_steps_find_the_best_time_between_them():
    """One free time: the search finds what a scan over all times finds."""
    schedule = schedules.cosine(1000).double()
    torch.manual_seed(0)
    x = torch.randn(64, 1, 2, 2, dtype=torch.float64)
    target = Target(gaussian(schedule, "v"), DDIM(2, clip=None), x, None, exact_of_a_gaussian(schedule, x))
    found = descend(target, [1000.0, 500.0], until=math.inf)
    scan = {t: target.error([1000.0, float(t)]) for t in range(10, 1000, 5)}
    best = min(scan, key=scan.get)
    assert found[0] == 1000
    assert target.error(found) <= 1.01 * scan[best]
    assert found[1] == pytest.approx(best, abs=40)


def test_a_search_never_ends_worse_than_it_began_nor_out_of_order():
    schedule = schedules.linear(1000).double()
    torch.manual_seed(0)
    x = torch.randn(16, 1, 2, 2, dtype=torch.float64)
    target = Target(gaussian(schedule, "epsilon"), DDIM(clip=None), x, None, exact_of_a_gaussian(schedule, x))
    start = [1000.0, 800.0, 600.0, 400.0, 200.0]
    found = descend(target, start, until=math.inf)
    assert target.error(found) < 0.7 * target.error(start)
    assert all(t > u for t, u in zip(found, [*found[1:], 0.999], strict=True))


@pytest.fixture
def checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr("ddpm_lightning.runs.times_search._REFERENCE", 20)
    monkeypatch.setattr("ddpm_lightning.runs.times_search._VALUES", 512)  # 8 images
    torch.manual_seed(0)
    net = UNet(1, 1, base_channels=8, channel_multipliers=(1,), num_res_blocks=1, attention_levels=(), norm_groups=4)
    save_denoiser(Denoiser(net, schedules.cosine(100)).eval(), tmp_path / "own.ckpt", shape=(1, 8, 8))
    return tmp_path / "own.ckpt"


def node(**changes):
    held = {
        "_target_": "ddpm_lightning.samplers.DDIM",
        "num_steps": 3,
        "eta": 0.0,
        "clip": 1.0,
        "dynamic_threshold": None,
    }
    return OmegaConf.create(held | {"spacing": "karras", "continuous": False, "times": "learned"} | changes)


def test_times_are_stored_with_what_they_were_made_from(checkpoint, capsys):
    from ddpm_lightning.runs.loading import load_model

    path = find_times(checkpoint, weights="raw", steps=3, sampler="ddim", seconds=5.0)
    assert path.name == "own.ckpt.times.json"
    find_times(checkpoint, weights="raw", steps=3, sampler="ddim", seconds=5.0)  # in place of the first ones
    find_times(checkpoint, weights="raw", steps=2, sampler="ddim", seconds=5.0)
    entries = json.loads(path.read_text())
    assert [len(entry["times"]) for entry in entries] == [3, 2]
    assert "learned" in entries[0]["errors_on_other_noise"]
    assert "from other noise" in capsys.readouterr().out
    denoiser = load_model(checkpoint, weights="raw")[0]
    last = checkpoint.parent / "run" / "checkpoints" / "last.ckpt"  # named by its run's folder
    last.parent.mkdir(parents=True)
    shutil.copy(checkpoint, last)
    assert find_times(last.parents[1], weights="raw", steps=3, sampler="ddim", seconds=5.0).parent == last.parent
    assert learned_settings(last.parents[1], denoiser, node()) == learned_settings(last, denoiser, node())
    assert learned_settings(checkpoint, denoiser, node()) == {"times": entries[0]["times"]}
    with pytest.raises(UserError, match=r"--sampler ddim --steps 5` first"):
        learned_settings(checkpoint, denoiser, node(num_steps=5))
    with pytest.raises(UserError, match=r"times=learned requires .* sampler=ddim unchanged: omit sampler.clip=null$"):
        learned_settings(checkpoint, denoiser, node(clip=None))
    with pytest.raises(UserError, match="requires a sampler without noise, got sampler=ddim: choose sampler=learned"):
        learned_settings(checkpoint, denoiser, node(eta=1.0))
    with torch.no_grad():
        next(denoiser.model.parameters()).add_(1)
    with pytest.raises(UserError, match="have not been learned for these weights: run"):
        learned_settings(checkpoint, denoiser, node())
    path.write_text("{")
    with pytest.raises(UserError, match="delete it"):
        learned_settings(checkpoint, denoiser, node())
    with pytest.raises(UserError, match="delete it"):  # before the search
        find_times(checkpoint, weights="raw", steps=3, sampler="ddim", seconds=1e6)


def test_coefficients_are_stored_too_and_sampled_with(checkpoint, monkeypatch):
    monkeypatch.setattr("ddpm_lightning.runs.learned_solver._REFERENCE", 10)
    path = find_times(checkpoint, weights="raw", steps=3, seconds=6.0)
    (entry,) = json.loads(path.read_text())
    assert [len(row) for row in entry["coefficients"]] == [3, 3, 3]
    assert "10 steps" in entry["reference"]
    chosen = ["sampler=learned", "sampler.num_steps=3", "weights=raw", f"ckpt_path={checkpoint}", "num_samples=4"]

    def prepared(*more):
        with initialize_config_dir(CONF_DIR, version_base="1.3"):
            return prepare_sampling(compose("sample", [*chosen, *more]), ALONE)

    setup = prepared()
    assert setup.times == [*entry["times"], 0.0]
    assert setup.sampler.rows == entry["coefficients"]
    assert setup.evaluations == 3
    with pytest.raises(UserError, match=r"--sampler learned --steps 4 --weights raw` first"):
        prepared("sampler.num_steps=4")


def test_training_data_are_read_in_random_order_and_never_downloaded(tmp_path, capsys):
    def of(*overrides):
        with initialize_config_dir(CONF_DIR, version_base="1.3"):
            return _training_data(OmegaConf.to_container(compose("train", [*overrides]).data, resolve=True))

    digits = of("data=digits")
    assert digits.images.shape == (1617, 1, 8, 8)
    assert (float(digits.images.min()), float(digits.images.max())) == (-1.0, 1.0)
    assert sorted(set(digits.labels[:100].tolist())) == [*range(10)]
    assert not capsys.readouterr().out
    assert of("data=fashion_mnist", f"data.root={tmp_path}") is None
    assert "The training data cannot be read: samples of many steps take their place" in capsys.readouterr().out
    assert not any(tmp_path.iterdir())
    np.save(tmp_path / "two.npy", np.zeros((2, 1, 8, 8), np.uint8))
    two = ["data=arrays", f"data.root={tmp_path}/two.npy", "data.dtype=uint8", "data.channels=1"]
    assert of(*two, "data.image_size=[8,8]", "data.val_fraction=0.5") is None
    assert "One training sample is too few: samples of many steps take their place" in capsys.readouterr().out


def test_noisy_samplers_and_odd_settings_are_refused(checkpoint):
    with pytest.raises(UserError, match="--sampler must be learned, or deterministic .* got ancestral"):
        find_times(checkpoint, weights="raw", sampler="ancestral")
    with pytest.raises(ValueError, match="steps must be"):
        find_times(checkpoint, weights="raw", steps=0)
    with pytest.raises(ValueError, match="seconds must be"):
        find_times(checkpoint, weights="raw", seconds=0.0)


@pytest.mark.parametrize(
    ("times", "path"),
    [([90, 40, 5], [90, 40, 5, 0]), ([100.0, 33.3], [100.0, 33.3, 0.0]), ([70, 2.5], [70.0, 2.5, 0.0])],
)
def test_a_sampler_takes_times_as_they_are(times, path):
    found = DDIM(50, times=times).times(100)
    assert found == path
    assert {type(t) for t in found} == {type(path[0])}


@pytest.mark.parametrize("times", [[], [5, 5], [5, 9], [5, 0.5], "best"])
def test_times_out_of_order_are_refused(times):
    with pytest.raises(ValueError, match="times must"):
        DDIM(times=times)


def test_times_beyond_the_schedule_or_not_yet_learned_are_refused():
    with pytest.raises(ValueError, match=r"times\[0\] must be"):
        DDIM(times=[1000, 1]).times(100)
    with pytest.raises(ValueError, match="ddpm_lightning times CHECKPOINT"):
        DDIM(times="learned").times(100)
