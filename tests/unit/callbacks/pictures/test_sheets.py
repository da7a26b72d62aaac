"""The sheets of callbacks, without a run: forward strips at chosen times, and full rows of labels."""

from types import SimpleNamespace

import pytest
import torch

from ddpm_lightning import schedules
from ddpm_lightning.callbacks import ForwardStrip, SampleGrid
from ddpm_lightning.data.source import Batch
from ddpm_lightning.data.values import Values
from ddpm_lightning.errors import UserError
from ddpm_lightning.images import SeededNoise, to_uint8
from ddpm_lightning.samplers import DDIM
from ddpm_lightning.sheets import Layout

IMAGES = torch.randint(256, (6, 1, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


class Data:
    """Held-out or training images, with labels."""

    values, source = Values(), SimpleNamespace(classes=["cat", "dog"])

    def __init__(self, split):
        self.split = split

    def batches(self, name, count):
        labels = torch.tensor([1, 0, 1, 0, 1, 0])
        return [Batch(IMAGES[:count], labels[:count], torch.arange(count))] if name == self.split else []


def module(split="validation", schedule=None):
    denoiser = SimpleNamespace(schedule=schedule or schedules.linear(10, beta_end=0.5))
    return SimpleNamespace(denoiser=denoiser, trainer=SimpleNamespace(datamodule=Data(split)))


@pytest.mark.parametrize("split", ["validation", "train"])
def test_a_forward_strip_at_chosen_times(split, monkeypatch):
    texts, strip = [], ForwardStrip((1, 4, 4), "x", num_images=2, times=[0, 3, 10], seed=5)
    monkeypatch.setattr("ddpm_lightning.sheets._written", lambda canvas, lines: texts.extend(lines) or canvas)
    pixels, facts = strip.draw(module(split))
    images = Layout.read(facts).images(pixels)[:, :1].reshape(2, 3, 1, 4, 4)
    assert torch.equal(images[:, 0], IMAGES[:2])
    kept = torch.cumprod(1 - torch.linspace(1e-4, 0.5, 10, dtype=torch.float64), 0)
    noise = torch.cat([SeededNoise(5, [i]).draw((1, 4, 4)) for i in range(2)])
    for column, t in ((1, 3), (2, 10)):
        x = kept[t - 1].sqrt() * (IMAGES[:2] / 127.5 - 1) + (1 - kept[t - 1]).sqrt() * noise
        assert (images[:, column].int() - to_uint8(x).int()).abs().max() <= 1
    named = [line.text for line in texts]
    assert named == ["dog", "cat", "t = 0", "ᾱ = 1", "t = 3", f"ᾱ = {kept[2]:.2g}", "t = 10", f"ᾱ = {kept[9]:.2g}"]


def test_a_time_beyond_the_schedule_is_refused():
    with pytest.raises(
        UserError, match=r"forward_strip.times must be an integer from 0 to 10, got 11: the schedule has T=10"
    ):
        ForwardStrip((1, 4, 4), "x", times=[0, 11]).draw(module())


def test_drawing_leaves_the_generator_of_training_alone():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    ForwardStrip((1, 4, 4), "x").draw(module())
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("asked", "drawn"), [(64, 60), (10, 10), (7, 7)])
def test_a_grid_of_labels_has_full_rows(asked, drawn, monkeypatch):
    monkeypatch.setattr(
        "ddpm_lightning.callbacks.pictures.grid.sampled_together",
        lambda module, count, sample: torch.zeros(count, 1, 4, 4),
    )
    _, facts = SampleGrid(DDIM(2), (1, 4, 4), "x", num_samples=asked, num_classes=10).draw(module())
    order = Layout.read(facts).order
    assert sorted(number for number in order if number >= 0) == list(range(drawn))
    assert drawn < 10 or -1 not in order
