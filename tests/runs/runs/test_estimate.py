"""What a run will take, tried before it starts, and the batch size that it chooses by that."""

import math
import re

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from ddpm_lightning import runs
from ddpm_lightning.errors import UserError
from ddpm_lightning.runs import build, estimate
from ddpm_lightning.runs.build import build_run
from ddpm_lightning.runs.estimate import Estimate, Trial, automatic_batch_size
from ddpm_lightning.runs.graphs import graph_training
from ddpm_lightning.runs.resume_point import refuse_another
from tests.helpers.configs import train_config
from tests.runs.runs.test_graphs import replayed


def test_memory_of_a_step_by_hand():
    net = nn.Sequential(*[part for _ in range(4) for part in (nn.Linear(500, 500), nn.Sigmoid())])
    net(torch.randn(64, 500)).sum().backward()
    there = [*net.parameters(), *[p.grad for p in net.parameters()]]
    with estimate._LiveMemory(there) as memory:
        net(torch.randn(64, 500)).sum().backward()
    rows, weights = 64 * 500 * 4, 500 * 500 * 4
    # The input and four outputs are kept for the backward pass; in it there are a gradient of rows before and behind a layer, and
    # one of its weights.
    assert 5 * rows + weights <= memory.peak <= 7 * rows + weights + 2**13
    assert not memory._alive


def test_a_step_takes_what_it_is_seen_to_take(tmp_path):
    run = build_run(train_config(tmp_path / "run"), None)
    found = {size: Trial(run.module, run.trainer, (1, 8, 8), None).estimate(size) for size in (8, 64)}
    weights = 5 * 4 * run.parameters
    assert found[64].memory - weights == pytest.approx(8 * (found[8].memory - weights), rel=0.01)
    assert found[64].seconds > found[8].seconds > 0


@pytest.mark.parametrize(("gib", "fits"), [(0.1, 1), (1.0, 1), (1.25, 1), (1.4, 2), (1.95, 4), (2.0, 8), (100, 512)])
def test_largest_batch_that_fits(tmp_path, monkeypatch, gib, fits):
    run = build_run(train_config(tmp_path / "run"), None)
    trial = Trial(run.module, run.trainer, (1, 8, 8), None)
    trial._weights = 2**30
    monkeypatch.setattr(estimate, "total_memory", lambda: gib * 2**30)
    monkeypatch.setattr(trial, "_peak", lambda size: size * 0.1 * 2**30)
    assert trial.estimate(4).fits == fits  # one GiB of weights, a tenth for each image, in nine tenths


@pytest.mark.parametrize(
    ("base", "each", "fits", "images", "chosen"),
    [
        (1.0, 0.1, 2**16, 10**6, 64),  # from 64 to 128 images 2 (1 + 6.4) / (1 + 12.8) = 1.07 times as fast
        (0.0, 0.1, 2**16, 10**6, 8),  # never faster
        (1.0, 0.0, 2**16, 10**6, 2**16),  # always twice as fast
        (1.0, 0.0, 256, 10**6, 256),
        (1.0, 0.0, 4, 10**6, 4),
        (1.0, 0.0, 2**16, 1000, 512),
        (1.0, 0.0, 2**16, 5, 8),
    ],
)
def test_the_batch_size_that_pays(base, each, fits, images, chosen):
    class Fake:
        def estimate(self, size):
            assert size <= 2 * fits
            return Estimate(base + each * size, 1.0, 2.0, fits)

    assert automatic_batch_size(Fake(), images) == chosen


def test_an_automatic_batch_size_is_part_of_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(build, "automatic_batch_size", lambda trial, images: 24)
    auto = ["data.batch_size=auto", "trainer.max_steps=4", "callbacks.checkpoint.every_n_train_steps=2"]
    runs.train(train_config(tmp_path / "auto", *auto))
    runs.train(train_config(tmp_path / "given", *auto, "data.batch_size=24"))
    assert OmegaConf.load(tmp_path / "auto" / "config.yaml").data.batch_size == 24
    ends = [torch.load(tmp_path / name / "checkpoints" / "last.ckpt")["state_dict"] for name in ("auto", "given")]
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())

    def never(trial, images):
        raise AssertionError

    monkeypatch.setattr(build, "automatic_batch_size", never)
    (tmp_path / "auto" / "checkpoints" / "last.ckpt").unlink()
    (tmp_path / "auto" / "checkpoints" / "step_0000004.ckpt").unlink()
    runs.train(train_config(tmp_path / "other", f"resume={tmp_path / 'auto'}"))
    resumed = torch.load(tmp_path / "auto" / "checkpoints" / "last.ckpt")["state_dict"]
    assert all(torch.equal(value, ends[0][name]) for name, value in resumed.items())
    refuse_another(train_config(tmp_path / "auto", *auto), tmp_path / "auto")  # of a sweep
    with pytest.raises(UserError, match=r"data.batch_size=24, not 16"):
        refuse_another(train_config(tmp_path / "auto", *auto, "data.batch_size=16"), tmp_path / "auto")


@pytest.mark.parametrize("loss", ["loss/times=importance", "loss/times=stratified", "loss=simple"])
def test_a_trial_changes_nothing(tmp_path, monkeypatch, loss):
    ends = []
    for name in ("tried", "untried"):
        runs.train(train_config(tmp_path / name, "trainer.max_steps=3", "model.dropout=0.1", loss))
        ends.append(torch.load(tmp_path / name / "checkpoints" / "last.ckpt")["state_dict"])
        monkeypatch.setattr(build, "_try_steps", lambda *_: None)
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())


def test_a_run_says_what_it_will_take(tmp_path, capsys):
    runs.train(train_config(tmp_path / "run", "trainer.max_steps=3", "data.num_classes=10"))
    assert " s and use " in (line := capsys.readouterr().out.splitlines()[1])
    assert line.startswith("Training will take about 0 s and use about ")
    assert re.search(r"; data.batch_size can be at most \d+$", line)
    assert Estimate(90.0, 3 * 2**30, 2 * 2**30, 64).sentence(10) == (
        "Training will take about 15 min and use about 3.0 GiB of 2.0 GiB of memory for tensors, which is too much; "
        "data.batch_size can be at most 64"
    )
    assert Estimate(0.25, 2**22, math.inf, 2048).sentence(None) == (
        "Training will take about 0.25 s a batch and use about 4 MiB for tensors; data.batch_size can be at most 2048"
    )
    assert "about 1.5 h and use" in Estimate(0.5, 2**22, math.inf, 2048).sentence(10800)


def test_several_processes_need_a_number(tmp_path):
    with pytest.raises(UserError, match="data.batch_size=auto requires a single process: .*trainer.devices=1"):
        build_run(train_config(tmp_path / "run", "data.batch_size=auto", "trainer=ddp_cpu"), None)


def test_a_network_that_cannot_be_copied(tmp_path, monkeypatch):
    def fail(*args):
        raise TypeError("cannot pickle '_thread.lock' object")

    monkeypatch.setattr(build, "Trial", fail)
    assert build_run(train_config(tmp_path / "run"), None).estimate is None
    with pytest.raises(UserError, match=r"data.batch_size must be .* got 'auto': the network cannot be tried"):
        build_run(train_config(tmp_path / "run", "data.batch_size=auto"), None)


def test_graphs_of_a_trial_are_freed(tmp_path):
    run = build_run(train_config(tmp_path / "run"), None)
    graph_training(run.module, run.trainer)
    run.module.record = replayed
    trial = Trial(run.module, run.trainer, (1, 8, 8), None)
    assert trial.estimate(16).seconds > 0
    assert not hasattr(run.module, "_graphs")
    assert not hasattr(trial._module, "_graphs")
