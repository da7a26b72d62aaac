"""What cannot be is refused in one sentence, before training or sampling begins, and leaves nothing behind."""

import time

import pytest

from ddpm_lightning import runs
from ddpm_lightning.cli.entry import sentence
from ddpm_lightning.errors import UserError
from tests.helpers.configs import TINY, config_of

# Some of each kind; all others are tried on the constructors, in tests/unit/test_bad_values.py.
REFUSED = (
    "seed=-1",
    "label_dropout=2",
    "optimized_metric=val/fid",
    "schedule.num_steps=0",
    "model.base_channels=1000000",
    "model.attention_levels=[7]",
    "data.batch_size=0",
    "data.num_classes=7",
    "data=webdataset data.root=nowhere data.dataset.buffer=0",
    "optimizer.lr=nan",
    "lr_scheduler.start_factor=0",
    "loss=vlb loss/times=importance loss.times.num_steps=10",
    "sampler.num_steps=1001",
    "callbacks.sample_grid.every_n_steps=0",
    "trainer.devices=100000",
    "init_from=nowhere",
)


def refusal(call):
    """The one sentence that a call is refused with."""
    started = time.monotonic()
    with pytest.raises(UserError) as raised:
        call()
    said = sentence(raised.value)
    print(f"{time.monotonic() - started:.1f} s: {said}")
    assert "\n" not in str(raised.value)
    return said


@pytest.mark.parametrize("line", REFUSED)
def test_no_training_begins(line, tmp_path):
    config = config_of(*TINY, "logger=none", f"run_dir={tmp_path / 'run'}", *line.split())
    key, _, value = line.split()[-1].partition("=")
    said = refusal(lambda: runs.train(config))
    assert key.rpartition(".")[2] in said
    assert value.strip("[]") in said
    assert not any(tmp_path.iterdir())


SAMPLING = {
    "num_samples=0": "num_samples must be an integer from 1 to",
    "num_samples=1.5": "num_samples must be an integer from 1 to",
    "num_samples=1000000000000": "num_samples must be an integer from 1 to",
    "num_samples=null": "num_samples must be an integer from 1 to",
    "batch_size=-1": "batch_size must be an integer from 1 to",
    "batch_size=inf": "batch_size must be an integer from 1 to",
    "seed=-1": "seed must be a non-negative integer, got -1",
    "seed=nan": "seed must be a non-negative integer, got nan",
    "seed=null": "seed must be a non-negative integer, got null",
    "guidance_scale=-1": "guidance_scale must be a non-negative number, got -1",
    "guidance_scale=nan": "guidance_scale must be a finite number, got nan",
    "guidance_scale=2": "guidance_scale must be 1 for a model trained without labels, got 2",
    "labels=[1]": "labels",
    "format=gif": "format must be grid, html, png, npz or npy, got 'gif'",
    "weights=best": "weights must be ema or raw, got 'best'",
    "device=tpu": "device=tpu is not available on this machine",
    "sampler.num_steps=0": "sampler.num_steps must be a positive integer",
    "sampler.num_steps=2000": "sampler.num_steps must be an integer from 1 to 1000, got 2000",
    "sampler.spacing=even": "sampler.spacing must be trailing, leading, linspace, quadratic or karras, got 'even'",
    "sampler.eta=-0.5": "sampler.eta must be a number in [0, 1], got -0.5",
    "sampler.eta=nan": "sampler.eta must be a finite number, got nan",
    "sampler.clip=nan": "sampler.clip must be a finite number, got nan",
    "sampler.dynamic_threshold=0": "sampler.dynamic_threshold must be a number in (0, 1] or null, got 0",
    "out_dir=FILE": "cannot be created (File exists): give another folder",
    "out_dir=FILE/below": "cannot be created (Not a directory): give another folder",
    "ckpt_path=FILE": "FILE",
    "ckpt_path=nowhere": "ckpt_path=nowhere cannot be loaded (there is no such file)",
}


@pytest.mark.parametrize("override", SAMPLING)
def test_no_sampling_begins(override, tiny_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "FILE").write_text("of someone else")
    config = config_of(f"ckpt_path={tiny_run}", "out_dir=out", "sampler=ddim", override, name="sample")
    assert SAMPLING[override] in refusal(lambda: runs.sample(config))
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("FILE", "of someone else")]
