"""The same training whatever the machines: an optimizer step's images shared out over batches and processes."""

import pytest
import torch

from ddpm_lightning import runs
from ddpm_lightning.losses.noise import NoiseDraw
from ddpm_lightning.module import DDPM
from ddpm_lightning.runs import build
from tests.helpers.configs import NO_FIGURES, train_config


def trained(folder, batches, *overrides, monkeypatch, steps=4):
    """What each optimizer step of 32 images drew, in the order of its images, and the weights at the end."""
    seen = []
    learn = DDPM.learn

    def watched(self, x0, x_t, t, noise, weight, y):
        seen.append((x0, x_t, t.flatten(), noise, *([] if y is None else [y])))
        return learn(self, x0, x_t, t, noise, weight, y)

    with monkeypatch.context() as patch:
        patch.setattr(DDPM, "learn", watched)
        patch.setattr(build, "_try_steps", lambda *_: None)
        split = [f"data.batch_size={32 // batches}", f"trainer.accumulate_grad_batches={batches}"]
        runs.train(
            train_config(folder, f"trainer.max_steps={steps}", "data.flip=true", *split, *NO_FIGURES, *overrides)
        )
    steps = [seen[i : i + batches] for i in range(0, len(seen), batches)]
    drawn = [[torch.cat(parts) for parts in zip(*step, strict=True)] for step in steps]
    return drawn, torch.load(folder / "checkpoints" / "last.ckpt")["state_dict"]


@pytest.mark.parametrize(
    "overrides",
    [
        ("data.num_classes=10", "label_dropout=0.5"),
        ("loss/times=stratified", "loss.offset_noise=0.2", "loss.input_perturbation=0.1"),
        (
            "loss/times=importance",
            "loss.times.history=1",
            "schedule.num_steps=4",
            "schedule.beta_end=0.5",
            "sampler.num_steps=2",
        ),
        ("loss/times=log_normal",),
    ],
    ids=["labels", "stratified", "importance", "log_normal"],
)
def test_accumulated_batches_draw_the_bits_of_one(tmp_path, overrides, monkeypatch):
    whole, weights = trained(tmp_path / "1", 1, *overrides, monkeypatch=monkeypatch)
    for batches in (2, 4):
        parts, others = trained(tmp_path / str(batches), batches, *overrides, monkeypatch=monkeypatch)
        assert len(parts) == len(whole) == 4
        for one, other in zip(whole, parts, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
        for name, value in weights.items():
            torch.testing.assert_close(others[name], value, rtol=1e-4, atol=1e-5)


def test_what_is_sampled_for_a_whole_step_is_what_one_batch_samples():
    for memory in (torch.contiguous_format, torch.channels_last):
        x0 = torch.zeros(6, 3, 4, 4).contiguous(memory_format=memory)
        torch.manual_seed(0)
        expected = NoiseDraw(0.3)(torch.zeros(6, 3, 4, 4))
        torch.manual_seed(0)
        assert torch.equal(NoiseDraw(0.3)(x0[:1].expand(6, 3, 4, 4)), expected)


def test_beyond_a_bound_each_process_draws_for_itself(tmp_path, monkeypatch):
    monkeypatch.setattr("ddpm_lightning.module.MOST", 16 * 64)
    parts, _ = trained(tmp_path / "2", 2, monkeypatch=monkeypatch, steps=1)
    assert torch.equal(parts[0][3][:16], parts[0][3][16:])


def test_accumulated_batches_of_a_stream_are_the_same(shards, tmp_path, monkeypatch):
    stream = [
        "data=webdataset",
        f"data.root={shards}",
        "data.channels=1",
        "data.image_size=[8,8]",
        "data.dataset.workers=0",
    ]
    whole, weights = trained(tmp_path / "1", 1, *stream, monkeypatch=monkeypatch)
    for batches in (2, 4):
        parts, others = trained(tmp_path / str(batches), batches, *stream, monkeypatch=monkeypatch)
        for one, other in zip(whole, parts, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
        for name, value in weights.items():
            torch.testing.assert_close(others[name], value, rtol=1e-4, atol=1e-5)
