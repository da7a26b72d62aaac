"""Labels: dropped in training, and followed more or less."""

import numpy as np
import pytest
import torch
from torch import nn

from ddpm_lightning import schedules
from ddpm_lightning.data.source import Batch
from ddpm_lightning.denoiser import PREDICTIONS, Denoiser, Guidance, Guided
from ddpm_lightning.losses import Loss
from ddpm_lightning.models import UNet
from ddpm_lightning.module import DDPM
from ddpm_lightning.samplers import DDIM, Ancestral, DPMSolver, Heun, UniPC


class ByLabel(nn.Module):
    """Output x/2 plus a number for each label; keeps what it was asked."""

    num_classes = 2

    def __init__(self, learned=False):
        super().__init__()
        self.asked, self.learned = [], learned

    def forward(self, x, t, y=None):
        y = torch.full_like(t, 2, dtype=torch.long) if y is None else y
        self.asked.append((len(x), t.tolist(), y.tolist()))
        out = x / 2 + torch.tensor([0.1, -0.3, 0.7], dtype=x.dtype)[y][:, None, None, None]
        return torch.cat([out, out.sign() / 3], dim=1) if self.learned else out


def of(prediction="epsilon", learned=False, **options):
    schedule = schedules.from_betas(np.linspace(1e-3, 0.3, 20).tolist()).double()
    return Denoiser(ByLabel(learned), schedule, prediction=prediction, learned_variance=learned, **options)


X, Y = torch.randn(4, 1, 2, 2, dtype=torch.float64), torch.tensor([0, 1, 1, 0])

T4 = torch.tensor([1, 7, 12, 20])[:, None, None, None]


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("t", [torch.tensor(9), T4])
def test_guidance_is_the_papers_formula(prediction, t):
    denoiser = of(prediction)
    for scale in (0.5, 2.0, 7.5):
        with_label, without = denoiser.predict(X, t, Y), denoiser.predict(X, t)
        w = scale - 1  # Ho & Salimans 2022, Eq. 6
        out = (1 + w) * with_label - w * without
        torch.testing.assert_close(Guided(denoiser, scale)(X, t, Y), denoiser.x0_from(out, X, t))


def test_scale_1_is_the_conditional_model_and_0_the_unconditional_one():
    denoiser = of("v")
    torch.testing.assert_close(Guided(denoiser, 1)(X, T4, Y), denoiser(X, T4, Y), rtol=0, atol=1e-6)
    torch.testing.assert_close(Guided(denoiser, 0)(X, T4, Y), denoiser(X, T4), rtol=0, atol=1e-6)
    assert not torch.allclose(denoiser(X, T4), denoiser(X, T4, Y))


def test_one_batch_and_no_more_than_it_takes():
    denoiser = of()
    for scale, sizes in ((0.0, [4]), (1.0, [4]), (3.0, [8])):
        denoiser.model.asked.clear()
        Guided(denoiser, scale)(X, T4, Y)
        assert [n for n, *_ in denoiser.model.asked] == sizes
    ((_, times, labels),) = denoiser.model.asked
    assert times == [0, 6, 11, 19] * 2
    assert labels == [0, 1, 1, 0, 2, 2, 2, 2]


def test_a_learned_variance_is_that_of_the_model_with_labels():
    denoiser, u = of("v", learned=True), T4 - 1
    _, expected = denoiser.estimate(X, T4, Y, u=u)
    _, got = Guided(denoiser, 4.0).estimate(X, T4, Y, u=u)
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("sampler", [Ancestral(5), DDIM(5), DPMSolver(5), Heun(5), UniPC(5)])
def test_every_sampler_takes_labels_and_guidance(sampler):
    denoiser = of("v")
    noise = torch.randn(99, *X.shape, dtype=torch.float64)
    runs_of = {}
    for key, guided, y in (
        ("plain", denoiser, Y),
        ("1", Guided(denoiser, 1.0), Y),
        ("0", Guided(denoiser, 0.0), Y),
        ("none", denoiser, None),
        ("3", Guided(denoiser, 3.0), Y),
    ):
        draws = iter(noise)
        runs_of[key] = sampler(guided, X, y, randn=lambda _, draws=draws: next(draws))
    torch.testing.assert_close(runs_of["1"], runs_of["plain"], rtol=0, atol=1e-6)
    torch.testing.assert_close(runs_of["0"], runs_of["none"], rtol=0, atol=1e-6)
    assert (runs_of["3"] - runs_of["1"]).abs().max() > 1e-3


def test_a_scale_without_labels_to_follow_is_refused():
    model = nn.Identity()
    with pytest.raises(ValueError, match=r"guidance_scale must be 1 for a model trained without labels, got 2"):
        Guided(Denoiser(model, schedules.linear(4)), 2)
    Guided(Denoiser(model, schedules.linear(4)), 1)


def test_labels_are_dropped_one_by_one_with_their_probability():
    model = UNet(1, 1, base_channels=8, channel_multipliers=(1, 1), num_res_blocks=1, norm_groups=4, num_classes=10)
    module = DDPM(Denoiser(model, schedules.linear()), Loss(), torch.optim.Adam, label_dropout=0.3)
    y = torch.arange(10).repeat(5000)
    torch.manual_seed(0)
    kept = module._drop(y, len(y), slice(None))
    dropped = kept == 10
    assert torch.equal(kept[~dropped], y[~dropped])
    assert abs(dropped.float().mean() - 0.3) < 5 * (0.21 / len(y)) ** 0.5
    for label in range(10):
        assert abs(dropped[y == label].float().mean() - 0.3) < 0.04
    both = (dropped[1:] & dropped[:-1]).float().mean()
    assert abs(both - 0.09) < 0.01  # one image's coin says nothing of its neighbor's
    assert module._drop(None, len(y), slice(None)) is None


def test_the_training_step_hands_the_labels_on():
    model = UNet(1, 1, base_channels=8, channel_multipliers=(1, 1), num_res_blocks=1, norm_groups=4, num_classes=10)
    asked = []
    model.register_forward_hook(lambda _, args, out: asked.append(args[2]))
    for share, expected in ((0.0, [3, 9]), (1.0, [10, 10])):
        module = DDPM(Denoiser(model, schedules.linear()), Loss(), torch.optim.Adam, label_dropout=share)
        module.training_step(Batch(torch.zeros(2, 1, 4, 4), torch.tensor([3, 9]), torch.arange(2)), 0)
        assert asked.pop().tolist() == expected
    with pytest.raises(ValueError, match=r"label_dropout must be a number in \[0, 1\], got 1.5"):
        DDPM(Denoiser(model, schedules.linear()), Loss(), torch.optim.Adam, label_dropout=1.5)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_an_interval_guides_at_its_noise_levels_only(prediction):
    denoiser, guided = of(prediction), Guided(of(prediction), 3.0)
    abar = np.cumprod(1 - np.linspace(1e-3, 0.3, 20))
    sigma = np.sqrt((1 - abar) / abar)
    limited = Guided(denoiser, 3.0, interval=(sigma[5], sigma[10]))  # t = 6 is left out, t = 11 is the last one in
    for t in range(1, 21):
        expected = (guided if 7 <= t <= 11 else denoiser)(X, torch.tensor(t), Y)
        torch.testing.assert_close(limited(X, torch.tensor(t), Y), expected)
    mixed = limited(X, T4, Y)  # t = 1, 7, 12, 20
    torch.testing.assert_close(mixed[1], guided(X, T4, Y)[1])
    torch.testing.assert_close(mixed[[0, 2, 3]], denoiser(X, T4, Y)[[0, 2, 3]])
    without = Guided(denoiser, 0.0, interval=(sigma[5], sigma[10]))(X, T4, Y)
    torch.testing.assert_close(without[1], denoiser(X, T4)[1])
    torch.testing.assert_close(without[[0, 2, 3]], denoiser(X, T4, Y)[[0, 2, 3]])


def test_outside_its_interval_guidance_costs_nothing():
    denoiser = of()
    Guidance(3.0, [0.1, 0.2]).of(denoiser)(X, torch.tensor(20), Y)
    assert [asked[0] for asked in denoiser.model.asked] == [4]


def test_autoguidance_is_away_from_the_weaker_model():
    denoiser, weaker = of("v"), of("epsilon")  # another prediction type, so another estimate
    weak, strong = weaker(X, T4, Y), denoiser(X, T4, Y)
    torch.testing.assert_close(Guided(denoiser, 2.5, weaker=weaker)(X, T4, Y), weak + 2.5 * (strong - weak))
    torch.testing.assert_close(Guided(denoiser, 1, weaker=weaker)(X, T4, Y), strong)
    torch.testing.assert_close(Guided(denoiser, 0, weaker=weaker)(X, T4, Y), weak)


def test_autoguidance_needs_the_same_noise_and_labels():
    other = Denoiser(ByLabel(), schedules.cosine(20))
    with pytest.raises(ValueError, match="same noise schedule"):
        Guided(of(), 2, weaker=other)
    unlabelled = of()
    unlabelled.model.num_classes = None
    with pytest.raises(ValueError, match="same labels"):
        Guided(of(), 2, weaker=unlabelled)


@pytest.mark.parametrize("share", [0.0, 0.7, 1.0])
def test_rescaling_gives_back_the_standard_deviation(share):
    denoiser = of("x0")
    plain, guided = denoiser(X, T4, Y), Guided(denoiser, 6.0)(X, T4, Y)
    found = Guided(denoiser, 6.0, rescale=share)(X, T4, Y)
    for image, before, after in zip(found, plain, guided, strict=True):
        factor = share * float(before.std() / after.std()) + 1 - share
        torch.testing.assert_close(image, after * factor)


@pytest.mark.parametrize("learned", [False, True])
def test_all_of_them_together_through_a_sampler(learned):
    sampler = Ancestral(variance="learned" if learned else "small", clip=None)
    guided = Guidance(2.0, [0.05, 0.8], 0.5).of(of(learned=learned))
    torch.manual_seed(0)
    x = sampler(guided, X, Y)
    assert x.isfinite().all()
    assert guided.denoiser.num_classes == 2


def test_evaluations_are_counted_where_guidance_is_on():
    from ddpm_lightning.runs.sampling_setup import count_evaluations

    schedule = schedules.edm(1000)
    counts = {
        None: count_evaluations(DDIM(10, spacing="karras"), schedule),
        "everywhere": count_evaluations(DDIM(10, spacing="karras"), schedule, Guidance(2.0)),
        "between": count_evaluations(DDIM(10, spacing="karras"), schedule, Guidance(2.0, [0.3, 5.0])),
        "off": count_evaluations(DDIM(10, spacing="karras"), schedule, Guidance(1.0, [0.3, 5.0])),
    }
    root = torch.lerp(torch.tensor(80 ** (1 / 7)), torch.tensor(0.002 ** (1 / 7)), torch.linspace(0, 1, 10))
    inside = int(((root**7 > 0.3) & (root**7 <= 5)).sum())  # Karras et al. 2022, Eq. 5
    assert counts == {None: 10, "everywhere": 20, "between": 10 + inside, "off": 10}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scale": -1.0}, "guidance_scale"),
        ({"scale": 2.0, "rescale": 1.5}, "guidance_rescale"),
        ({"scale": 2.0, "interval": [0.1]}, "guidance_interval must be two noise levels"),
        ({"scale": 2.0, "interval": 3}, "guidance_interval must be two noise levels"),
        ({"scale": 2.0, "interval": [3.0, 1.0]}, "guidance_interval"),
    ],
)
def test_bad_guidance_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Guidance(**settings).of(of())
